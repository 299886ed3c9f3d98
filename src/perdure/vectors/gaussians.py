"""Class means and covariances, which are stored instead of examples."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True)
class Gaussians:
    """The mean and the covariance of the features for each class of a task.

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
        """Estimate the mean and covariance of each class, from labels between 0 and `classes` - 1.

        The covariance of a class with N examples has the divisor N - 1, and is zero if N
        is 1. A class with no examples has zero mean and zero covariance.
        """
        means = []
        covariances = []
        for label in range(classes):
            members = features[labels == label]
            count = len(members)
            # For an empty class, dividing by 1 gives zeros instead of NaN.
            mean = members.sum(0) / max(1, count)
            centred = members - mean
            covariance = centred.T @ centred / max(1, count - 1)
            means.append(mean)
            covariances.append(covariance)
        return cls(torch.stack(means), torch.stack(covariances))

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors by the names under which they are saved."""
        return {"means": self.means, "covariances": self.covariances}
