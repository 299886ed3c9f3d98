"""The task posterior p(t | x): the probability that an input x belongs to task t.

p(class | x) = sum over t of p(t | x) p(class | t, x)   (Kim et al. 2022, arXiv 2211.02633)

Each class is modelled as a Gaussian over the features of the *frozen* backbone. Either all
classes share one covariance (linear discriminant analysis), or those of a task do. Only
sums are stored for each task. They do not depend on the order of examples or tasks, and
they contain no examples. A task is forgotten by leaving out its sums.

Such a model is overconfident, so the logarithm of its probabilities is divided by a
temperature, which can be fitted on validation examples (`perdure.evaluation.validation`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Literal

import torch
from annotated_types import Ge, Gt, Le
from jaxtyping import Float
from torch import Tensor

from perdure.errors import RunError
from perdure.evaluation.feature_folder import shared
from perdure.models import adapters, shares
from perdure.models.backbone import Backbone
from perdure.models.examples import Examples, in_order
from perdure.models.heads import check_directions, unit_norm
from perdure.vectors.statistics import Statistics, squared_distances, within

Kind = Literal["plain", "unit"]
"""The features that the task posterior models: as they are, or scaled to unit length."""
Covariance = Literal["shared", "by_task"]
"""The classes that share a covariance: all, or those of a task."""
PRIOR = 8.0
"""How many examples per feature the shared covariance counts for in that of a task.

Of 2, 4 and 8, this has the smallest loss -log p(t | x) on validation examples, added up over
the four streams of recipes/posterior.py (200 to 600 examples per task). 4 is close to it.
"""


@dataclass(frozen=True, kw_only=True)
class PosteriorSettings:
    """Settings for the task posterior.

    The defaults are those of runs that were made before there were settings. With
    `features: unit`, `shrinkage: 0.05`, `covariance: by_task` and `temperature: fitted`, the
    loss -log p(t | x) was smaller on validation data of four streams.

    Parameters
    ----------
    features
        The features of the frozen backbone that are modelled: `plain`, or scaled to `unit`
        length.
    shrinkage
        The share s of the spherical covariance in (1 - s) Sigma + s (trace Sigma / d) I.
    covariance
        `shared` by all classes, or one for each task (`by_task`); see `TaskPosterior`.
    temperature
        The number T by which log p is divided before it is normalised. With 1, the Gaussian
        model is trusted; a larger T makes p(t | x) less certain. If it is `fitted`, each
        task stores what its validation examples say about T, and about the distances at
        which an input is unknown.
    """

    features: Kind = "plain"
    shrinkage: Annotated[float, Ge(0), Le(1)] = 0.1
    covariance: Covariance = "shared"
    temperature: Annotated[float, Gt(0)] | Literal["fitted"] = 1.0


class TaskPosterior:
    """The task posterior log p(t | x), computed from statistics of the tasks.

    p(t | x)^T is proportional to the sum over the classes c of t of pi_c N(x; mu_c, Sigma).
    A priori, all tasks are equally likely, and within a task each class is as likely as
    it was in training. Sigma is the covariance within classes, pooled over tasks and
    shrunk: (1 - s) Sigma + s (trace Sigma / d) I.

    With `covariance: by_task`, each task has a covariance of its own instead, which is
    (n Sigma_t + m Sigma) / (n + m). Sigma_t is that of the n training examples of the
    task, and Sigma, the one of all tasks, counts for m = 8 d examples: the mean of the
    covariance under an inverse Wishart prior with mean Sigma. Like Friedman's regularised
    discriminant analysis, it recognises a task by how its examples vary, too.

    With a shared covariance and T = 1, this is linear discriminant analysis. It is
    overconfident: the features of a transformer are not Gaussian, and each of their many
    dimensions counts as independent evidence. Probabilities are closer to 0 and 1 than
    they should be, at any shrinkage. They are still good enough to weight the heads. A
    temperature T > 1 mends this, and changes no most likely task.

    Parameters
    ----------
    statistics
        The statistics of each task, by task name.
    shrinkage
        The shrinkage s, between 0 and 1.
    temperature
        The temperature T.
    features
        The features from which the statistics were computed.
    covariance
        `shared`, or `by_task`.

    References
    ----------
    Friedman, Regularized Discriminant Analysis, JASA 84, 1989; Greene & Rayens, Partially
    pooled covariance matrix estimation in discriminant analysis, Communications in
    Statistics 18, 1989.

    Examples
    --------
    >>> left = Statistics.of(torch.tensor([[-1.1], [-0.9]]), torch.tensor([0, 1]), count=2)
    >>> right = Statistics.of(torch.tensor([[0.5], [1.5]]), torch.tensor([0, 0]), count=1)
    >>> posterior = TaskPosterior({"left": left, "right": right})
    >>> posterior.log_prob(torch.tensor([[-1.0], [1.0]])).argmax(1).tolist()
    [0, 1]
    """

    def __init__(
        self,
        statistics: Mapping[str, Statistics],
        *,
        shrinkage: float = 0.1,
        temperature: float = 1.0,
        features: Kind = "plain",
        covariance: Covariance = "shared",
    ):
        self.temperature = temperature
        self.features: Kind = features
        self.tasks = list(statistics)
        self.sizes: list[int] = []  # the number of classes of each task
        counts: list[Tensor] = []
        means: list[Tensor] = []
        log_priors: list[Tensor] = []
        for of_task in statistics.values():
            # A class without training examples has no mean, so it is left out.
            n, mean, log_prior = of_task.present()
            self.sizes.append(len(n))
            counts.append(n)
            means.append(mean)
            log_priors.append(log_prior)
        self.means = torch.cat(means)
        self.log_prior = torch.cat(log_priors)
        # All classes share one covariance, so the products of all tasks are added.
        products = torch.stack([of_task.products for of_task in statistics.values()])
        self.covariance = within(
            torch.cat(counts),
            self.means,
            products.sum(0),
            shrinkage,
        )
        self.by_task: list[TaskClasses] = []  # empty if all tasks share one covariance
        if covariance == "by_task":
            for number, of_task in enumerate(statistics.values()):
                own = within(counts[number], means[number], of_task.products, shrinkage)
                n, m = of_task.counts.sum(), PRIOR * len(own)
                mixed = (n * own + m * self.covariance) / (n + m)
                self.by_task.append(TaskClasses.of(means[number], log_priors[number], mixed))

    @cached_property
    def precision(self) -> Float[Tensor, "features features"]:
        """The inverse of the covariance that all classes share; not needed if each task has one."""
        return torch.linalg.inv(self.covariance)

    @cached_property
    def classifier(
        self,
    ) -> tuple[Float[Tensor, "classes features"], Float[Tensor, " classes"]]:
        """The weights and biases of the linear scores of all classes, task after task.

        The score of class c is log (pi_c N(x; mu_c, Sigma)), without the terms that all
        classes share.
        """
        weight = self.means @ self.precision
        squares = (weight * self.means).sum(1)
        return weight, self.log_prior - 0.5 * squares

    def log_prob(
        self, features: Float[Tensor, "examples features"]
    ) -> Float[Tensor, "examples tasks"]:
        """Return log p(t | x) for each example and task.

        Raises
        ------
        RunError
            The features or the statistics contain values that are not finite.
        """
        # Double precision, on the CPU, like the statistics: not every device supports it.
        x = scaled(features, self.features).double().cpu()
        # The sum over a task's classes, in logarithms.
        per_task: list[Tensor] = []
        for of_task in self._scores(x):
            per_task.append(of_task.logsumexp(1))
        # The temperature is that of tasks, not of classes: it cannot change which is likeliest.
        log_posterior = (torch.stack(per_task, dim=1) / self.temperature).log_softmax(1)
        broken = log_posterior.isnan().any(1)
        if broken.any():
            raise RunError(
                f"The task of {int(broken.sum())} of {len(broken)} examples cannot be determined: "
                "the backbone's features, or the statistics of the run, are not finite numbers. "
                "Try `perdure verify`."
            )
        return log_posterior

    def _scores(self, x: Float[Tensor, "examples features"]) -> Sequence[Tensor]:
        """Return log (pi_c N(x; mu_c, Sigma)) for the classes of each task.

        Terms that are the same for all classes of all tasks are left out.
        """
        if self.by_task:
            return [classes.log_density(x) for classes in self.by_task]
        weight, bias = self.classifier
        return (x @ weight.T + bias).split(self.sizes, dim=1)


@dataclass(frozen=True)
class TaskClasses:
    """The Gaussian classes of a task, which share a covariance with each other only."""

    means: Float[Tensor, "classes features"]
    log_prior: Float[Tensor, " classes"]
    precision: Float[Tensor, "features features"]
    log_determinant: Float[Tensor, ""]

    @classmethod
    def of(
        cls,
        means: Float[Tensor, "classes features"],
        log_prior: Float[Tensor, " classes"],
        covariance: Float[Tensor, "features features"],
    ) -> TaskClasses:
        """Invert the covariance, which must not be singular."""
        determinant = torch.linalg.slogdet(covariance)
        return cls(means, log_prior, torch.linalg.inv(covariance), determinant.logabsdet)

    def log_density(
        self, features: Float[Tensor, "examples features"]
    ) -> Float[Tensor, "examples classes"]:
        """Return log (pi_c N(x; mu_c, Sigma_t)), without the power of 2 pi."""
        squares = squared_distances(features, self.means, self.precision)
        return self.log_prior - 0.5 * (squares + self.log_determinant)


def scaled(
    features: Float[Tensor, "examples features"], kind: Kind
) -> Float[Tensor, "examples features"]:
    """Return the features that are modelled; of `unit` length, a vector of zeros stays zero."""
    return unit_norm(features) if kind == "unit" else features


def check_scalable(features: Float[Tensor, "examples features"], task: str, split: str) -> None:
    """Raise `TrainingError` if a feature vector of a task is zero, and so has no direction."""
    check_directions(features, task, split, instead="set `posterior.features: plain`")


@torch.no_grad()
def describe(backbone: Backbone, examples: Examples) -> Float[Tensor, "examples features"]:
    """Return the frozen backbone's features of the examples, which are computed once and cached."""
    # Cached with the examples, because training, measurement and the scale search all use them.
    if examples.described is None:
        examples.described = shared(backbone, examples, lambda: _described(backbone, examples))
    return examples.described


def _described(backbone: Backbone, examples: Examples) -> Float[Tensor, "examples features"]:
    backbone.eval()
    described = []
    # The features must not change from task to task, so no adapter may be active.
    with adapters.disabled(backbone.model):
        for rows, batch in shares.batches(examples, backbone.device):
            features = backbone.features(batch).cpu()
            described.append((rows, features))
    return in_order(shares.gathered(described))
