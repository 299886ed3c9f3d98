"""Sums over features that suffice to fit Gaussian groups or a ridge regression.

Examples and tasks can be added in any order, and can also be removed. No example is stored.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from perdure.errors import TrainingError


@dataclass(frozen=True)
class Statistics:
    """Sums over the features of a set of examples, in double precision.

    The statistics of two sets of examples add up to the statistics of both sets together.

    Examples
    --------
    >>> features, groups = torch.tensor([[1.0], [3.0], [5.0]]), torch.tensor([0, 0, 1])
    >>> whole = Statistics.of(features, groups, count=2)
    >>> whole.counts.tolist(), whole.sums.tolist(), whole.products.tolist()
    ([2.0, 1.0], [[4.0], [5.0]], [[35.0]])
    >>> first = Statistics.of(features[:1], groups[:1], count=2)
    >>> rest = Statistics.of(features[1:], groups[1:], count=2)
    >>> torch.equal((first + rest).sums, whole.sums)
    True
    """

    counts: Float[Tensor, " groups"]
    sums: Float[Tensor, "groups features"]
    products: Float[Tensor, "features features"]

    @classmethod
    def of(
        cls,
        features: Float[Tensor, "examples features"],
        groups: Int[Tensor, " examples"],
        count: int,
    ) -> Statistics:
        """Return the statistics of examples in groups that are numbered from 0 to `count` - 1.

        A group is usually a class.

        Raises
        ------
        TrainingError
            A feature is not finite, which would corrupt the sums and every later
            prediction of the run.
        """
        x = features.double().cpu()
        _check_finite(x)
        # One row per example, with a 1 in the column of its group.
        membership = torch.nn.functional.one_hot(groups.cpu(), count).double()
        return cls(
            counts=membership.sum(0),
            sums=membership.T @ x,
            products=x.T @ x,
        )

    def __add__(self, other: Statistics) -> Statistics:
        return Statistics(
            counts=self.counts + other.counts,
            sums=self.sums + other.sums,
            products=self.products + other.products,
        )

    def __sub__(self, other: Statistics) -> Statistics:
        """Remove the examples of `other`."""
        return Statistics(
            counts=self.counts - other.counts,
            sums=self.sums - other.sums,
            products=self.products - other.products,
        )

    @classmethod
    def side_by_side(cls, statistics: Iterable[Statistics]) -> Statistics:
        """Return the statistics of several tasks whose groups all differ, as those of one task.

        Examples
        --------
        >>> one = Statistics.of(torch.tensor([[1.0]]), torch.tensor([0]), count=1)
        >>> Statistics.side_by_side([one, one]).counts.tolist()
        [1.0, 1.0]
        """
        tasks = list(statistics)
        products = torch.stack([of_task.products for of_task in tasks])
        return cls(
            counts=torch.cat([of_task.counts for of_task in tasks]),
            sums=torch.cat([of_task.sums for of_task in tasks]),
            products=products.sum(0),
        )

    def present(
        self,
    ) -> tuple[
        Float[Tensor, " present"], Float[Tensor, "present features"], Float[Tensor, " present"]
    ]:
        """Return the counts, the means, and the logarithms of the shares of groups with examples.

        A group without examples has no mean.
        """
        present = self.counts > 0
        counts = self.counts[present]
        means = self.sums[present] / counts[:, None]
        shares = counts / counts.sum()
        return counts, means, shares.log()

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors by the names under which they are saved."""
        return {"counts": self.counts, "sums": self.sums, "products": self.products}


def _check_finite(features: Float[Tensor, "examples features"]) -> None:
    broken = (~features.isfinite()).any(1)
    if broken.any():
        first = int(broken.nonzero()[0]) + 1
        raise TrainingError(
            f"The backbone's features of {int(broken.sum())} of {len(features)} examples are not "
            f"finite numbers. The first is example {first}. Check the model's weights, and this "
            "example."
        )


def within(
    counts: Float[Tensor, " groups"],
    means: Float[Tensor, "groups features"],
    products: Float[Tensor, "features features"],
    shrinkage: float,
) -> Float[Tensor, "features features"]:
    """Return the pooled within-group covariance, with shrinkage.

    If Σ is the pooled covariance of d features, this is (1 - s) Σ + s (trace Σ / d) I,
    where s is `shrinkage`.
    """
    weighted = counts[:, None] * means
    between = weighted.T @ means
    covariance = (products - between) / counts.sum()
    d = len(covariance)
    # The trace is zero if all examples are identical; the minimum keeps the result invertible.
    spread = covariance.trace().clamp_min(1e-12) / d
    sphere = spread * torch.eye(d, dtype=torch.double)
    return (1 - shrinkage) * covariance + shrinkage * sphere


def squared_distances(
    features: Float[Tensor, "examples features"],
    means: Float[Tensor, "groups features"],
    precision: Float[Tensor, "features features"],
) -> Float[Tensor, "examples groups"]:
    """Return the squared Mahalanobis distance of each example from each mean.

    Parameters
    ----------
    precision
        The inverse of the covariance that the groups share.
    """
    x = features.double().cpu()
    weighted = means @ precision
    of_examples = ((x @ precision) * x).sum(1, keepdim=True)
    of_means = (weighted * means).sum(1)
    return of_examples - 2 * (x @ weighted.T) + of_means
