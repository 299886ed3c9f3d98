"""Inputs that belong to no task, recognised by their distance from the classes of a task.

An input is compared with the validation examples of its most likely task. The share of
them that are at least as far from the task's classes is a p-value: of known examples, at
most 5 % have a share of 0.05 or less, whatever the distribution of the features is. It
holds for examples that are drawn like the validation examples, and whose task is found.
"""

from collections.abc import Mapping

import torch
from jaxtyping import Float, Int
from torch import Tensor

from perdure.errors import InputError
from perdure.evaluation.posterior import Kind, scaled
from perdure.evaluation.validation import OwnClasses, Validation
from perdure.vectors.statistics import Statistics


class KnownInputs:
    """The inputs that the tasks of a run have taught it, each task with its own Gaussians.

    No task affects another, so this is exact after tasks have been added or forgotten.

    Parameters
    ----------
    statistics, validations
        The statistics of each task, and the distances of its validation examples.
    features
        The features from which both were computed.

    References
    ----------
    Vovk, Gammerman & Shafer, Algorithmic Learning in a Random World, 2005 (conformal
    p-values); for the distance, see `perdure.evaluation.validation.OwnClasses`.
    """

    def __init__(
        self,
        statistics: Mapping[str, Statistics],
        validations: Mapping[str, Validation],
        *,
        features: Kind = "plain",
    ):
        self.tasks = list(statistics)
        self.features: Kind = features
        self.classes = [OwnClasses(of_task) for of_task in statistics.values()]
        self.distances = [validations[name].distances for name in self.tasks]

    def shares(
        self,
        features: Float[Tensor, "examples features"],
        tasks: Int[Tensor, " examples"],
    ) -> Float[Tensor, " examples"]:
        """Return the share of a task's examples that are at least as far from its classes.

        It is (1 + the number of them) / (1 + the number of validation examples).

        Parameters
        ----------
        tasks
            The index of the task with which each example is compared.
        """
        x = scaled(features, self.features).double().cpu()
        shares = torch.ones(len(x), dtype=torch.double)
        for number, (classes, known) in enumerate(zip(self.classes, self.distances, strict=True)):
            rows = tasks == number
            if rows.any():
                distances = classes.relative(x[rows])
                farther = len(known) - torch.searchsorted(known, distances)
                shares[rows] = (1 + farther).double() / (1 + len(known))
        return shares

    def check(self, share: float) -> None:
        """Raise `InputError` if a task has too few validation examples for a share of known ones.

        With n of them, no input has a share below 1 / (n + 1).
        """
        for name, known in zip(self.tasks, self.distances, strict=True):
            fewest = 1 / (1 + len(known))
            if share < fewest:
                raise InputError(
                    f"Task `{name}` has {len(known)} validation examples, too few to tell the "
                    f"{100 * share:g} % of known inputs that are farthest from its classes. "
                    f"The smallest possible share is {fewest:.3f}."
                )


def auroc(known: Float[Tensor, " known"], unknown: Float[Tensor, " unknown"]) -> float:
    """Return the probability that an unknown input has a higher score than a known one.

    Equal scores count half. It is the area under the ROC curve.

    Examples
    --------
    >>> auroc(torch.tensor([1.0, 2.0]), torch.tensor([2.0, 3.0]))
    0.875
    """
    ordered = known.sort().values
    below = torch.searchsorted(ordered, unknown)
    not_above = torch.searchsorted(ordered, unknown, right=True)
    half_equal = (below + not_above).double() / 2
    return half_equal.mean().item() / len(known)


def false_positives(
    known: Float[Tensor, " known"], unknown: Float[Tensor, " unknown"], *, kept: float = 0.95
) -> float:
    """Return the share of unknown inputs that pass for known where a share of known ones do.

    It is known as FPR at 95 % in the literature.

    Examples
    --------
    >>> false_positives(torch.tensor([1.0, 2.0]), torch.tensor([2.0, 3.0]), kept=1.0)
    0.5
    """
    threshold = known.double().quantile(kept)
    return (unknown <= threshold).double().mean().item()


def caught(known: Float[Tensor, " known"], unknown: Float[Tensor, " unknown"]) -> list[float]:
    """Return the share of unknown inputs that do not pass where 0, 1, …, 100 % of known ones do.

    Examples
    --------
    >>> shares = caught(torch.tensor([1.0, 2.0]), torch.tensor([2.0, 3.0]))
    >>> shares[0], shares[100]
    (1.0, 0.5)
    """
    shares: list[float] = []
    for percent in range(101):
        passed = false_positives(known, unknown, kept=percent / 100)
        shares.append(1 - passed)
    return shares
