"""An affine map between the features of two models, which carries statistics from one to the other.

The statistics of a class are sums over examples that are not kept. If the features of a
second model are y = A x + a + r for features x of the first, with residuals r of mean zero
that do not depend on the class, the sums over y follow from the sums over x.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from perdure.vectors.statistics import Statistics


@dataclass(frozen=True)
class Drift:
    """The affine map y = A x + a + r from the features of one model to those of another.

    Attributes
    ----------
    matrix, shift
        A and a.
    residual
        The covariance of r.

    Examples
    --------
    >>> x = torch.tensor([[0.0], [1.0], [2.0]])
    >>> drift = Drift.fitted(x, 3 * x + 1, ridge=0)
    >>> drift.matrix.tolist(), drift.shift.tolist(), drift.residual.tolist()
    ([[3.0]], [1.0], [[0.0]])
    >>> carried = drift.carried(Statistics.of(x, torch.tensor([0, 1, 1]), count=2))
    >>> carried.sums.tolist(), carried.products.tolist()
    ([[1.0], [11.0]], [[66.0]])
    """

    matrix: Float[Tensor, "targets features"]
    shift: Float[Tensor, " targets"]
    residual: Float[Tensor, "targets targets"]

    @classmethod
    def fitted(
        cls,
        x: Float[Tensor, "examples features"],
        y: Float[Tensor, "examples targets"],
        *,
        ridge: float,
    ) -> Drift:
        """Fit the map by ridge regression, on the features of the same examples in both models.

        Parameters
        ----------
        ridge
            The penalty on the entries of A - B, relative to the mean variance of x. B x is
            the part of x that is nearest to y: all of it, if both have the same length, or
            one of several parts of that length; it is 0 if x has no such parts.
        """
        x = x.double().cpu()
        y = y.double().cpu()
        x_mean = x.mean(0)
        y_mean = y.mean(0)
        x = x - x_mean
        y = y - y_mean
        n, d = x.shape
        covariance = x.T @ x / n
        spread = covariance.trace().clamp_min(1e-12) / d
        penalised = covariance + ridge * spread * torch.eye(d, dtype=torch.double)
        # Without a penalty on B, a direction that hardly varies in x stays as it is.
        before = _nearest_part(x, y)
        change = torch.linalg.solve(penalised, x.T @ (y - x @ before.T) / n)
        matrix = before + change.T
        rest = y - x @ matrix.T
        return cls(
            matrix=matrix,
            shift=y_mean - matrix @ x_mean,
            residual=rest.T @ rest / n,
        )

    def carried(self, statistics: Statistics) -> Statistics:
        """Return the statistics of y, given those of x."""
        A = self.matrix
        a = self.shift
        n = statistics.counts.sum()
        total = statistics.sums.sum(0)
        # The sum of (A x + a + r)(A x + a + r)ᵀ, in which r is uncorrelated with x.
        linear = A @ statistics.products @ A.T
        cross = torch.outer(A @ total, a)
        constant = n * (torch.outer(a, a) + self.residual)
        return Statistics(
            counts=statistics.counts,
            sums=statistics.sums @ A.T + statistics.counts[:, None] * a,
            products=linear + cross + cross.T + constant,
        )


def _nearest_part(
    x: Float[Tensor, "examples features"], y: Float[Tensor, "examples targets"]
) -> Float[Tensor, "targets features"]:
    """Return the matrix B for which B x is the part of x, as long as y, that is nearest to y."""
    d = x.shape[1]
    width = y.shape[1]
    best = torch.zeros(width, d, dtype=x.dtype)
    if d % width:
        return best
    distances = [(y - part).square().sum() for part in x.split(width, dim=1)]
    nearest = int(torch.stack(distances).argmin())
    best[:, nearest * width : (nearest + 1) * width] = torch.eye(width, dtype=x.dtype)
    return best
