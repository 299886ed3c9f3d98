"""The task posterior p(t | x): which task an input belongs to, when nobody says.

p(class | x) = sum over t of p(t | x) p(class | t, x)   (Kim et al. 2022, arXiv 2211.02633)

Each class is a Gaussian over the features of the *frozen* backbone, all with one covariance (linear discriminant
analysis). What is kept of a task are sums, so the statistics add up example by example and task by task, do not
depend on the order, hold no example, and a task is forgotten by leaving its statistics out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from perdure import adapters
from perdure.backbone import Backbone, Encoded, in_order


@dataclass(frozen=True)
class Statistics:
    """Sums over the examples of one task, in double precision; those of two parts of the examples can be added.

    Examples
    --------
    >>> features, labels = torch.tensor([[1.0], [3.0], [5.0]]), torch.tensor([0, 0, 1])
    >>> whole = Statistics.of(features, labels, classes=2)
    >>> whole.counts.tolist(), whole.sums.tolist(), whole.products.tolist()
    ([2.0, 1.0], [[4.0], [5.0]], [[35.0]])
    >>> parts = Statistics.of(features[:1], labels[:1], classes=2) + Statistics.of(features[1:], labels[1:], classes=2)
    >>> torch.equal(parts.sums, whole.sums)
    True
    """

    counts: Float[Tensor, " classes"]
    sums: Float[Tensor, "classes features"]
    products: Float[Tensor, "features features"]

    @classmethod
    def of(
        cls, features: Float[Tensor, "examples features"], labels: Int[Tensor, " examples"], classes: int
    ) -> Statistics:
        """The statistics of examples with labels from 0 to `classes` - 1."""
        x = features.double().cpu()
        member = torch.nn.functional.one_hot(labels.cpu(), classes).double()
        return cls(member.sum(0), member.T @ x, x.T @ x)

    def __add__(self, other: Statistics) -> Statistics:
        return Statistics(self.counts + other.counts, self.sums + other.sums, self.products + other.products)

    def tensors(self) -> dict[str, Tensor]:
        """By name, as they are saved."""
        return {"counts": self.counts, "sums": self.sums, "products": self.products}


class TaskPosterior:
    """log p(t | x) from the statistics of tasks.

    p(t | x) is proportional to the sum over the classes c of t of pi_c N(x; mu_c, Sigma): every task is as likely
    before x is seen, and within a task a class is as likely as it was in training. Sigma is the covariance within
    classes, pooled over tasks and shrunk: (1 - s) Sigma + s (trace Sigma / d) I.

    Parameters
    ----------
    statistics
        By task name.
    shrinkage
        s, between 0 and 1.

    Examples
    --------
    >>> left = Statistics.of(torch.tensor([[-1.1], [-0.9]]), torch.tensor([0, 1]), classes=2)
    >>> right = Statistics.of(torch.tensor([[0.5], [1.5]]), torch.tensor([0, 0]), classes=1)
    >>> TaskPosterior({"left": left, "right": right}).log_prob(torch.tensor([[-1.0], [1.0]])).argmax(1).tolist()
    [0, 1]
    """

    def __init__(self, statistics: Mapping[str, Statistics], *, shrinkage: float = 0.1):
        self.tasks = list(statistics)
        present = {task: s.counts > 0 for task, s in statistics.items()}
        self.means = torch.cat([s.sums[present[t]] / s.counts[present[t], None] for t, s in statistics.items()])
        self.log_prior = torch.cat([(s.counts[present[t]] / s.counts.sum()).log() for t, s in statistics.items()])
        self.sizes = [int(present[t].sum()) for t in statistics]
        counts = torch.cat([s.counts[present[t]] for t, s in statistics.items()])
        products = torch.stack([s.products for s in statistics.values()]).sum(0)
        within = products - (counts[:, None] * self.means).T @ self.means
        covariance = within / counts.sum()
        spread = covariance.trace().clamp_min(1e-12) / len(covariance)
        shrunk = (1 - shrinkage) * covariance + shrinkage * spread * torch.eye(len(covariance), dtype=torch.double)
        self.precision = torch.linalg.inv(shrunk)

    def log_prob(self, features: Float[Tensor, "examples features"]) -> Float[Tensor, "examples tasks"]:
        """log p(t | x) for each example and task."""
        x = features.double().cpu()
        # log N(x; mu_c, Sigma) up to what all classes share
        weighted = self.means @ self.precision
        scores = x @ weighted.T - 0.5 * (weighted * self.means).sum(1) + self.log_prior
        per_task = [part.logsumexp(1) for part in scores.split(self.sizes, dim=1)]
        return torch.stack(per_task, dim=1).log_softmax(1)


@torch.no_grad()
def describe(backbone: Backbone, examples: Encoded) -> Float[Tensor, "examples features"]:
    """The frozen backbone's features of examples; computed once and kept with them."""
    if examples.described is None:
        backbone.eval()
        with adapters.disabled(backbone.model):
            parts = [(rows, backbone.describe(batch["inputs"]).cpu()) for rows, batch in examples.batches()]
        examples.described = in_order(parts)
    return examples.described
