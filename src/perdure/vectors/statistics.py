"""Sums over features that are enough for Gaussian groups and for ridge regression.

They add up example by example and task by task in any order, and examples can be taken out again.
No example is kept.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from perdure.errors import TrainingError


@dataclass(frozen=True)
class Statistics:
    """Sums over the examples of one task, in double precision.

    The statistics of two sets of examples add up to those of both.

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
        """Return the statistics of examples in groups from 0 to `count` - 1.

        Usually a group is a class.

        Raises
        ------
        TrainingError
            A feature is not a finite number: a sum with it would spoil every later answer of the
            run.
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
        """Take the examples of `other` out again."""
        return Statistics(
            counts=self.counts - other.counts,
            sums=self.sums - other.sums,
            products=self.products - other.products,
        )

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors, by the names they are saved under."""
        return {"counts": self.counts, "sums": self.sums, "products": self.products}


def _check_finite(features: Float[Tensor, "examples features"]) -> None:
    broken = (~features.isfinite()).any(1)
    if broken.any():
        first = int(broken.nonzero()[0]) + 1
        raise TrainingError(
            f"The backbone's features of {int(broken.sum())} of {len(features)} examples are not "
            f"finite numbers, first those of example {first}. Check the model's weights, and this "
            "example."
        )


def within(
    counts: Float[Tensor, " groups"],
    means: Float[Tensor, "groups features"],
    products: Float[Tensor, "features features"],
    shrinkage: float,
) -> Float[Tensor, "features features"]:
    """Return the covariance within groups, Σ, pooled and shrunk.

    That is (1 - s) Σ + s (trace Σ / d) I, with the `shrinkage` s and d features.
    """
    weighted = counts[:, None] * means
    between = weighted.T @ means
    covariance = (products - between) / counts.sum()
    d = len(covariance)
    # Identical examples have no spread at all; the floor keeps the result invertible.
    spread = covariance.trace().clamp_min(1e-12) / d
    sphere = spread * torch.eye(d, dtype=torch.double)
    return (1 - shrinkage) * covariance + shrinkage * sphere
