"""The task posterior p(t | x): which task an input belongs to, when nobody says.

p(class | x) = sum over t of p(t | x) p(class | t, x)   (Kim et al. 2022, arXiv 2211.02633)

Each class is a Gaussian over the features of the *frozen* backbone, all with one covariance (linear discriminant
analysis). What is kept of a task are sums, so the statistics add up example by example and task by task, do not
depend on the order, hold no example, and a task is forgotten by leaving its statistics out.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from perdure.errors import RunError
from perdure.models import adapters
from perdure.models.backbone import Backbone
from perdure.models.examples import Examples, in_order
from perdure.vectors.statistics import Statistics, within


class TaskPosterior:
    """log p(t | x) from the statistics of tasks.

    p(t | x) is proportional to the sum over the classes c of t of pi_c N(x; mu_c, Sigma): every task is as likely
    before x is seen, and within a task a class is as likely as it was in training. Sigma is the covariance within
    classes, pooled over tasks and shrunk: (1 - s) Sigma + s (trace Sigma / d) I.

    It is linear discriminant analysis, and as confident: features of a transformer are no Gaussians, and their many
    dimensions count as if each were new evidence, so that probabilities lie nearer to 0 and 1 than they should, at
    any shrinkage. Heads are weighed by them all the same.

    Parameters
    ----------
    statistics
        By task name.
    shrinkage
        s, between 0 and 1.

    Examples
    --------
    >>> left = Statistics.of(torch.tensor([[-1.1], [-0.9]]), torch.tensor([0, 1]), count=2)
    >>> right = Statistics.of(torch.tensor([[0.5], [1.5]]), torch.tensor([0, 0]), count=1)
    >>> TaskPosterior({"left": left, "right": right}).log_prob(torch.tensor([[-1.0], [1.0]])).argmax(1).tolist()
    [0, 1]
    """

    def __init__(self, statistics: Mapping[str, Statistics], *, shrinkage: float = 0.1):
        self.tasks = list(statistics)
        present = {task: s.counts > 0 for task, s in statistics.items()}
        self.means = torch.cat(
            [s.sums[present[t]] / s.counts[present[t], None] for t, s in statistics.items()]
        )
        self.log_prior = torch.cat(
            [(s.counts[present[t]] / s.counts.sum()).log() for t, s in statistics.items()]
        )
        self.sizes = [int(present[t].sum()) for t in statistics]
        counts = torch.cat([s.counts[present[t]] for t, s in statistics.items()])
        products = torch.stack([s.products for s in statistics.values()]).sum(0)
        self.precision = torch.linalg.inv(within(counts, self.means, products, shrinkage))

    def log_prob(
        self, features: Float[Tensor, "examples features"]
    ) -> Float[Tensor, "examples tasks"]:
        """Return log p(t | x) for each example and task.

        Raises
        ------
        RunError
            The features, or the statistics, are not finite numbers.
        """
        x = features.double().cpu()
        # log N(x; mu_c, Sigma) up to what all classes share
        weighted = self.means @ self.precision
        scores = x @ weighted.T - 0.5 * (weighted * self.means).sum(1) + self.log_prior
        per_task = [part.logsumexp(1) for part in scores.split(self.sizes, dim=1)]
        result = torch.stack(per_task, dim=1).log_softmax(1)
        if result.isnan().any():
            raise RunError(
                f"The tasks of {int(result.isnan().any(1).sum())} of {len(result)} examples cannot be told: the "
                "backbone's features, or the statistics of the run, are not finite numbers. Try `perdure verify`."
            )
        return result


@torch.no_grad()
def describe(backbone: Backbone, examples: Examples) -> Float[Tensor, "examples features"]:
    """The frozen backbone's features of examples; computed once and kept with them."""
    if examples.described is None:
        backbone.eval()
        with adapters.disabled(backbone.model):
            batches = examples.batches(device=backbone.device)
            parts = [(rows, backbone.features(batch).cpu()) for rows, batch in batches]
        examples.described = in_order(parts)
    return examples.described
