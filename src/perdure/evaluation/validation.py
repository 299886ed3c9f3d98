"""The fit of the Gaussian classes to a task's validation examples, as a few sums.

Everything here is computed from one task alone: its statistics and its validation
examples. Tasks can therefore be added, forgotten and reordered, as with the statistics
themselves. The price is that the covariance is estimated from one task's examples.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from perdure.errors import InputError
from perdure.vectors.statistics import Statistics, squared_distances, within

TEMPERATURES = 2 ** (torch.arange(57, dtype=torch.double) / 8)
"""The temperatures among which one is chosen: from 1 to 128, in steps of 9 %.

Below 1, a model would be made more certain than its Gaussians. A few validation examples
without a single error would ask for that, but only because they are few.
"""
SHRINKAGE = 0.5
"""The shrinkage of the covariance of one task.

It is estimated from fewer examples than the covariance that all tasks share. On the demo,
CLINC150 and Split MNIST, whose tasks have 200 to 900 examples of 384 or 768 features, the
temperature is then within 30 % of the one fitted to all tasks together; with 0.1, it is up
to three times as high.
"""
DISTANCES = 1000
"""The maximum number of distances that are stored for a task."""


@dataclass(frozen=True)
class Validation:
    """Sums and quantiles over a task's validation examples, which contain no example.

    Attributes
    ----------
    losses
        The sum of -log p(class | x, t) over the examples, at each of `TEMPERATURES`.
    distances
        The relative distances of the examples (see `OwnClasses`), in ascending order; of
        more than 1000, evenly spaced quantiles.
    """

    losses: Float[Tensor, " temperatures"]
    distances: Float[Tensor, " distances"]

    @classmethod
    def of(
        cls,
        statistics: Statistics,
        features: Float[Tensor, "examples features"],
        groups: Int[Tensor, " examples"],
    ) -> Validation:
        """Compare validation examples with the Gaussians of their own task.

        Parameters
        ----------
        statistics
            The statistics of the task's training examples.
        groups
            The class of each validation example. Examples of a class that has no
            training examples do not count.

        Raises
        ------
        InputError
            There are no validation examples of a class that has training examples.
        """
        present = statistics.counts > 0
        usable = present[groups]
        if not usable.any():
            raise InputError(
                "A temperature cannot be fitted without validation examples: give the task some, "
                "or set `posterior.temperature` to a number such as 1."
            )
        # Classes without training examples have no mean; the others are numbered again.
        numbers = present.cumsum(0) - 1
        own = numbers[groups[usable]]
        classes = OwnClasses(statistics)
        squares = classes.squares(features[usable])
        log_p = -0.5 * squares + classes.log_prior
        losses: list[Tensor] = []
        for temperature in TEMPERATURES:
            losses.append(
                torch.nn.functional.cross_entropy(log_p / temperature, own, reduction="sum")
            )
        distances = classes.relative(features[usable]).sort().values
        return cls(torch.stack(losses), _sketch(distances))

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors by the names under which they are saved."""
        return {"losses": self.losses, "distances": self.distances}


class OwnClasses:
    """The Gaussian classes of one task, with the covariance of this task alone.

    The relative distance of an input is the squared Mahalanobis distance from the nearest
    class, less that from a single Gaussian fitted to the whole task. What all texts of a
    kind have in common counts in both, so that the difference tells what an input has in
    common with a class.

    References
    ----------
    Ren et al., A Simple Fix to Mahalanobis Distance for Improving Near-OOD Detection,
    arXiv 2106.09022. There the single Gaussian is fitted to the examples of all classes.
    """

    def __init__(self, statistics: Statistics):
        counts, self.means, self.log_prior = statistics.present()
        total = counts.sum(0, keepdim=True)
        covariance = within(counts, self.means, statistics.products, SHRINKAGE)
        self.precision = torch.linalg.inv(covariance)
        # As if all examples of the task were of one class.
        self.mean = statistics.sums.sum(0, keepdim=True) / total
        covariance = within(total, self.mean, statistics.products, SHRINKAGE)
        self.task_precision = torch.linalg.inv(covariance)

    def squares(
        self, features: Float[Tensor, "examples features"]
    ) -> Float[Tensor, "examples classes"]:
        """Return the squared Mahalanobis distance of each example from each class."""
        return squared_distances(features, self.means, self.precision)

    def relative(self, features: Float[Tensor, "examples features"]) -> Float[Tensor, " examples"]:
        """Return the relative distance of each example from the nearest class."""
        nearest = self.squares(features).amin(1)
        of_task = squared_distances(features, self.mean, self.task_precision)
        return nearest - of_task[:, 0]


def fitted_temperature(validations: Iterable[Validation]) -> float:
    """Return the temperature with the smallest loss on the validation examples of all tasks.

    Tasks with a single group, such as those answered with free text, say nothing about
    it; if there are no others, the temperature is 1.

    Examples
    --------
    >>> losses = (TEMPERATURES.log2() - 3).square()
    >>> fitted_temperature([Validation(losses, torch.zeros(1))])
    8.0
    """
    total = torch.zeros_like(TEMPERATURES)
    for of_task in validations:
        total = total + of_task.losses
    # The first of equal losses: of a task that says nothing, they are all zero.
    return TEMPERATURES[total.argmin()].item()


def _sketch(distances: Float[Tensor, " examples"]) -> Float[Tensor, " distances"]:
    """Return sorted distances or, if there are many, evenly spaced quantiles of them."""
    if len(distances) <= DISTANCES:
        return distances
    # Quantiles at the middles of equal shares: none of them is an extreme example.
    levels = (torch.arange(DISTANCES, dtype=torch.double) + 0.5) / DISTANCES
    return distances.quantile(levels)
