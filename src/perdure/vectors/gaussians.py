"""Means and covariances of classes, which are remembered in place of examples."""

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
    >>> features = torch.tensor([[1.0, 0.0], [3.0, 0.0], [0.0, 5.0]])
    >>> gaussians = Gaussians.of(features, torch.tensor([0, 0, 1]), classes=2)
    >>> gaussians.means.tolist(), gaussians.covariances[0].tolist()
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

        The covariance of N examples has the divisor N - 1; that of a single example is zero. The
        mean of a class without examples is zero, too.
        """
        means = []
        covariances = []
        for label in range(classes):
            members = features[labels == label]
            count = len(members)
            # An empty class divides by 1: zeros instead of NaN.
            mean = members.sum(0) / max(1, count)
            centred = members - mean
            covariance = centred.T @ centred / max(1, count - 1)
            means.append(mean)
            covariances.append(covariance)
        return cls(torch.stack(means), torch.stack(covariances))

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors, by the names they are saved under."""
        return {"means": self.means, "covariances": self.covariances}
