"""The subspace of the inputs of layers that earlier tasks have taken.

Gradient projection memory (Saha et al. 2021, arXiv 2103.09762) in its dual form (Liang & Li, CVPR 2023): a basis
of the subspace or of its complement, whichever is smaller. The algebra is in double precision.
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
"""Covariances add up products in single precision: below this share of the sum of their eigenvalues is no direction."""


@dataclass(frozen=True)
class Subspace:
    """M, a subspace of R^d, by an orthonormal basis of itself or of its complement.

    Examples
    --------
    >>> first, second = torch.diag(torch.tensor([4.0, 1.0, 0.0])), torch.diag(torch.tensor([1.0, 1.0, 3.0]))
    >>> one = Subspace.empty(3).grown(first.double(), 0.99)
    >>> one.dimension, one.outside(torch.eye(3).double()).diagonal().tolist()
    (1, [0.0, 1.0, 1.0])
    >>> two = one.grown(second.double(), 0.9)
    >>> two.dimension, two.complement
    (2, True)
    """

    basis: Float[Tensor, "d vectors"]
    complement: bool

    @classmethod
    def empty(cls, d: int) -> Subspace:
        """Nothing is taken yet."""
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
        """What of the columns of x lies in the complement: x - M Mᵀ x, or M⊥ M⊥ᵀ x."""
        inside = self.basis @ (self.basis.T @ x)
        return inside if self.complement else x - inside

    def directions(
        self, C: Float[Tensor, "d d"], count: int, energy: Energy = "covariance"
    ) -> Float[Tensor, "d found"]:
        """The leading directions outside M of inputs with covariance C: at most `count`, orthonormal, none of noise.

        `energy="covariance"`: left singular vectors of (I - M Mᵀ) C, as InfLoRA's code has it; `"features"`: those of
        (I - M Mᵀ) H, H being the inputs themselves, as the paper has it.
        """
        outside, floor, room = self._outside(C, energy), _noise(C, energy), min(count, self.free)
        return self._leading(
            outside, energy, lambda energies: min(room, int((energies > floor).sum()))
        )

    def random_directions(self, count: int, random: torch.Generator) -> Float[Tensor, "d found"]:
        """Random orthonormal directions outside M: at most `count`."""
        d = len(self.basis)
        return self._clean(
            torch.randn(d, min(count, self.free), dtype=torch.double, generator=random)
        )

    def grown(
        self,
        C: Float[Tensor, "d d"],
        epsilon: float,
        *,
        energy: Energy = "covariance",
        balance: float | None = None,
    ) -> Subspace:
        """M with so many leading directions of inputs with covariance C that it holds the share `epsilon` of energy.

        Energies are squared singular values of (I - M Mᵀ) C, or of (I - M Mᵀ) H. Of the first task one direction fewer
        is taken, at least one, as in InfLoRA's code.

        With `balance`, not `epsilon` but the share of each direction decides: it is taken if balance · share > 1 / d,
        its cost in room to learn.
        """
        outside, floor = self._outside(C, energy), _noise(C, energy)
        total, all_left = _energy(C, energy), _energy(outside, energy)

        def wanted(energies: Tensor) -> int:
            if balance is not None:
                count = (balance * energies / total > 1 / len(C)).sum()
            elif self.dimension == 0:
                count = (energies.cumsum(0) < epsilon * total).sum().clamp_min(1)
            else:
                left = all_left - torch.cat([energies.new_zeros(1), energies.cumsum(0)])
                count = (left > (1 - epsilon) * total).sum()
            return min(int(count), int((energies > floor).sum()))

        # a threshold counts each of several equal eigenvalues, which only the whole decomposition is sure to find
        return self._with(self._leading(outside, energy, wanted, whole=balance is not None))

    def _outside(self, C: Tensor, energy: Energy) -> Tensor:
        """(I - M Mᵀ) C, for features (I - M Mᵀ) C (I - M Mᵀ); in coordinates of the complement if that is stored."""
        half = self.basis.T @ C if self.complement else self.outside(C)
        if energy == "covariance":
            return half
        return half @ self.basis if self.complement else self.outside(half.T)

    def _leading(
        self, outside: Tensor, energy: Energy, wanted: Wanted, *, whole: bool = False
    ) -> Tensor:
        """The leading directions of what `_outside` has found."""
        vectors = leading(outside, wanted, square=energy == "covariance", whole=whole)
        return self._clean(self.basis @ vectors if self.complement else vectors)

    def _clean(self, vectors: Tensor) -> Tensor:
        """Orthonormal and outside M to the last digit."""
        return _orthonormal(self.outside(_orthonormal(self.outside(vectors))))

    def _with(self, new: Tensor) -> Subspace:
        """M and new directions, which are orthonormal and outside it."""
        d, taken = len(self.basis), self.dimension + new.shape[1]
        if self.complement:  # what is left of the complement, in its own coordinates
            rest = torch.linalg.qr(self.basis.T @ new, mode="complete")[0][:, new.shape[1] :]
            return Subspace((self.basis @ rest).contiguous(), complement=True)
        basis = torch.cat([self.basis, new], dim=1)
        if taken > d / 2:
            basis = torch.linalg.qr(basis, mode="complete")[0][:, taken:]
        return Subspace(basis.contiguous(), complement=taken > d / 2)


def _energy(X: Tensor, energy: Energy) -> Tensor:
    """All of it: the sum of squared singular values of a covariance, or of the inputs themselves."""
    return X.square().sum() if energy == "covariance" else X.trace()


def _noise(C: Tensor, energy: Energy) -> Tensor:
    """The energy of a direction that may be noise."""
    return (NOISE * C.trace()) ** (2 if energy == "covariance" else 1)


def _orthonormal(vectors: Tensor) -> Tensor:
    return torch.linalg.qr(vectors)[0]
