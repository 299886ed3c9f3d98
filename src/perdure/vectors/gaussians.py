"""Means and covariances of classes: what is remembered of features in place of examples."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True)
class Gaussians:
    """Mean and covariance of the features of each class of a task.

    Examples
    --------
    >>> found = Gaussians.of(torch.tensor([[1.0, 0.0], [3.0, 0.0], [0.0, 5.0]]), torch.tensor([0, 0, 1]), classes=2)
    >>> found.means.tolist(), found.covariances[0].tolist()
    ([[2.0, 0.0], [0.0, 5.0]], [[2.0, 0.0], [0.0, 0.0]])
    """

    means: Float[Tensor, "classes features"]
    covariances: Float[Tensor, "classes features features"]

    @classmethod
    def of(
        cls,
        features: Float[Tensor, "examples features"],
        labels: Int[Tensor, " examples"],
        classes: int,
    ) -> Gaussians:
        """Estimate them from examples with labels from 0 to `classes` - 1.

        The covariance of N examples has the divisor N - 1; that of a single one is zero. A class without
        examples is at zero.
        """
        means, covariances = [], []
        for label in range(classes):
            own = features[labels == label]
            mean = own.sum(0) / max(1, len(own))
            means.append(mean)
            covariances.append((own - mean).T @ (own - mean) / max(1, len(own) - 1))
        return cls(torch.stack(means), torch.stack(covariances))

    def tensors(self) -> dict[str, Tensor]:
        """By name, as they are saved."""
        return {"means": self.means, "covariances": self.covariances}
