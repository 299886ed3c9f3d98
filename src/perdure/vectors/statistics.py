"""Sums over features that are enough for Gaussian groups, for ridge regression, and to take examples out again.

They add up example by example and task by task, do not depend on the order, and hold no example.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from perdure.errors import TrainingError


@dataclass(frozen=True)
class Statistics:
    """Sums over the examples of one task, in double precision; those of parts of the examples are added.

    Examples
    --------
    >>> features, groups = torch.tensor([[1.0], [3.0], [5.0]]), torch.tensor([0, 0, 1])
    >>> whole = Statistics.of(features, groups, count=2)
    >>> whole.counts.tolist(), whole.sums.tolist(), whole.products.tolist()
    ([2.0, 1.0], [[4.0], [5.0]], [[35.0]])
    >>> parts = Statistics.of(features[:1], groups[:1], count=2) + Statistics.of(features[1:], groups[1:], count=2)
    >>> torch.equal(parts.sums, whole.sums)
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
        """Return the statistics of examples in groups from 0 to `count` - 1; usually a group is a class.

        Raises
        ------
        TrainingError
            A feature is not a finite number: a sum with it would spoil every later answer of the run.
        """
        x = features.double().cpu()
        broken = (~x.isfinite()).any(1)
        if broken.any():
            raise TrainingError(
                f"The backbone's features of {int(broken.sum())} of {len(x)} examples are not finite numbers, first "
                f"those of example {int(broken.nonzero()[0]) + 1}. Check the model's weights, and this example."
            )
        member = torch.nn.functional.one_hot(groups.cpu(), count).double()
        return cls(member.sum(0), member.T @ x, x.T @ x)

    def __add__(self, other: Statistics) -> Statistics:
        return Statistics(
            self.counts + other.counts, self.sums + other.sums, self.products + other.products
        )

    def __sub__(self, other: Statistics) -> Statistics:
        """Without a part of the examples."""
        return Statistics(
            self.counts - other.counts, self.sums - other.sums, self.products - other.products
        )

    def tensors(self) -> dict[str, Tensor]:
        """By name, as they are saved."""
        return {"counts": self.counts, "sums": self.sums, "products": self.products}


def within(
    counts: Float[Tensor, " groups"],
    means: Float[Tensor, "groups features"],
    products: Float[Tensor, "features features"],
    shrinkage: float,
) -> Float[Tensor, "features features"]:
    """The covariance within groups, Σ, pooled and shrunk: (1 - s) Σ + s (trace Σ / d) I."""
    covariance = (products - (counts[:, None] * means).T @ means) / counts.sum()
    spread = covariance.trace().clamp_min(1e-12) / len(covariance)
    return (1 - shrinkage) * covariance + shrinkage * spread * torch.eye(
        len(covariance), dtype=torch.double
    )
