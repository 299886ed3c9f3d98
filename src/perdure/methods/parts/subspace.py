"""The subspace of the inputs of layers that earlier tasks have taken.

Gradient projection memory (Saha et al. 2021, arXiv 2103.09762) in its dual form (Liang & Li, CVPR
2023): a basis of the subspace or of its complement, whichever is smaller. All algebra is in double
precision.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from perdure.vectors.eigen import Wanted, leading

Energy = Literal["covariance", "features"]
NOISE = 2e-6
"""The share of the sum of a covariance's eigenvalues below which an eigenvalue may be noise.

Covariances add up products in single precision. On constant inputs that was seen to leave up to
7e-7 of the sum in directions that the inputs do not have.
"""


@dataclass(frozen=True)
class Subspace:
    """M, a subspace of R^d, by an orthonormal basis of itself or of its complement.

    Examples
    --------
    >>> first = torch.diag(torch.tensor([4.0, 1.0, 0.0])).double()
    >>> second = torch.diag(torch.tensor([1.0, 1.0, 3.0])).double()
    >>> after_one = Subspace.empty(3).grown(first, 0.99)
    >>> after_one.dimension, after_one.outside(torch.eye(3).double()).diagonal().tolist()
    (1, [0.0, 1.0, 1.0])
    >>> after_two = after_one.grown(second, 0.9)
    >>> after_two.dimension, after_two.complement
    (2, True)
    """

    basis: Float[Tensor, "d vectors"]
    complement: bool

    @classmethod
    def empty(cls, d: int) -> Subspace:
        """Return the subspace of dimension zero, before the first task."""
        return cls(torch.zeros(d, 0, dtype=torch.double), complement=False)

    @property
    def dimension(self) -> int:
        d, vectors = self.basis.shape
        return d - vectors if self.complement else vectors

    @property
    def free(self) -> int:
        """The dimension of the complement."""
        return len(self.basis) - self.dimension

    def outside(self, x: Float[Tensor, "d n"]) -> Float[Tensor, "d n"]:
        """Project the columns of x onto the complement: x - M Mᵀ x, or M⊥ M⊥ᵀ x."""
        projected = self.basis @ (self.basis.T @ x)
        return projected if self.complement else x - projected

    def directions(
        self, C: Float[Tensor, "d d"], count: int, energy: Energy = "covariance"
    ) -> Float[Tensor, "d directions"]:
        """Return the leading directions outside M of inputs with covariance C, orthonormal.

        There are at most `count` of them, and fewer where the rest is noise.

        Parameters
        ----------
        energy
            `covariance`: left singular vectors of (I - M Mᵀ) C, as in InfLoRA's code; `features`:
            those of (I - M Mᵀ) H, H being the inputs themselves, as in the paper.
        """
        outside = self._outside(C, energy)
        floor = _noise(C, energy)
        room = min(count, self.free)

        def number(energies: Tensor) -> int:
            return min(room, int((energies > floor).sum()))

        return self._leading(outside, energy, number)

    def random_directions(
        self, count: int, random: torch.Generator
    ) -> Float[Tensor, "d directions"]:
        """Return at most `count` random orthonormal directions outside M."""
        d = len(self.basis)
        room = min(count, self.free)
        return self._clean(torch.randn(d, room, dtype=torch.double, generator=random))

    def grown(
        self,
        C: Float[Tensor, "d d"],
        epsilon: float,
        *,
        energy: Energy = "covariance",
        balance: float | None = None,
    ) -> Subspace:
        """Add leading directions of inputs with covariance C to M.

        M then holds at least the share `epsilon` of the inputs' energy. Energies are squared
        singular values of (I - M Mᵀ) C, or of (I - M Mᵀ) H. The first task adds one direction
        fewer, but at least one, as in InfLoRA's code.

        With `balance`, the share of each direction decides instead of `epsilon`: it is added if
        balance · share > 1 / d, its cost in room to learn.
        """
        outside = self._outside(C, energy)
        floor = _noise(C, energy)
        total = _energy(C, energy)
        missing = _energy(outside, energy)

        def number(energies: Tensor) -> int:
            if balance is not None:
                shares = balance * energies / total
                count = (shares > 1 / len(C)).sum()
            elif self.dimension == 0:
                count = (energies.cumsum(0) < epsilon * total).sum().clamp_min(1)
            else:
                # Energies may be only the first ones, so M's shortfall is counted down from all.
                before = torch.cat([energies.new_zeros(1), energies.cumsum(0)])
                count = (missing - before > (1 - epsilon) * total).sum()
            return min(int(count), int((energies > floor).sum()))

        # A threshold counts each of several equal eigenvalues, and only the whole decomposition is
        # sure to find them all.
        whole = balance is not None
        return self._with(self._leading(outside, energy, number, whole=whole))

    def _outside(self, C: Tensor, energy: Energy) -> Tensor:
        """Return (I - M Mᵀ) C, or for features (I - M Mᵀ) C (I - M Mᵀ).

        If the complement is stored, the rows (for features, columns too) are in its coordinates.
        """
        half = self.basis.T @ C if self.complement else self.outside(C)
        if energy == "covariance":
            return half
        return half @ self.basis if self.complement else self.outside(half.T)

    def _leading(
        self, outside: Tensor, energy: Energy, number: Wanted, *, whole: bool = False
    ) -> Tensor:
        """Return the leading directions of a matrix from `_outside`."""
        vectors = leading(outside, number, square=energy == "covariance", whole=whole)
        return self._clean(self.basis @ vectors if self.complement else vectors)

    def _clean(self, vectors: Tensor) -> Tensor:
        """Make vectors orthonormal and orthogonal to M, to the last digit."""
        # One projection leaves a rounding error relative to the vectors before it, which may be
        # much longer than what is left of them; the second one removes it.
        once = _orthonormal(self.outside(vectors))
        return _orthonormal(self.outside(once))

    def _with(self, new: Tensor) -> Subspace:
        """Return M with new directions, which are orthonormal and outside it."""
        d = len(self.basis)
        added = new.shape[1]
        taken = self.dimension + added
        if self.complement:
            # In the old complement's own coordinates, the new complement is what is orthogonal to
            # the new directions.
            coordinates = self.basis.T @ new
            rest = torch.linalg.qr(coordinates, mode="complete")[0][:, added:]
            return Subspace((self.basis @ rest).contiguous(), complement=True)
        basis = torch.cat([self.basis, new], dim=1)
        is_large = taken > d / 2
        if is_large:
            basis = torch.linalg.qr(basis, mode="complete")[0][:, taken:]
        return Subspace(basis.contiguous(), complement=is_large)


def _energy(X: Tensor, energy: Energy) -> Tensor:
    """Return the sum of squared singular values of a covariance, or of the inputs themselves."""
    return X.square().sum() if energy == "covariance" else X.trace()


def _noise(C: Tensor, energy: Energy) -> Tensor:
    """Return the energy below which a direction may be noise."""
    floor = NOISE * C.trace()
    return floor**2 if energy == "covariance" else floor


def _orthonormal(vectors: Tensor) -> Tensor:
    return torch.linalg.qr(vectors)[0]
