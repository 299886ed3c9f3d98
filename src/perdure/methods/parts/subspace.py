"""The subspace that the earlier tasks' inputs of a layer span.

Gradient projection memory (Saha et al. 2021, arXiv 2103.09762) in its dual form (Liang &
Li, CVPR 2023): a basis of the subspace or of its complement, whichever is smaller. All
algebra is in double precision.
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
"""An eigenvalue below this share of the sum of a covariance's eigenvalues may be noise.

Covariances add up products in single precision. On constant inputs that was seen to leave
up to 7e-7 of the sum in directions that the inputs do not have.
"""


@dataclass(frozen=True)
class Subspace:
    """A subspace M of R^d, stored as an orthonormal basis of itself or of its complement.

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

        There are at most `count` of them, or fewer if the rest is noise.

        Parameters
        ----------
        energy
            `covariance`: left singular vectors of (I - M Mᵀ) C, as in InfLoRA's code; `features`:
            those of (I - M Mᵀ) H, H being the inputs themselves, as in the paper.
        """
        outside = self._outside(C, energy)
        floor = _noise(C, energy)
        # At most the dimensions that M leaves free, whatever rounding makes of the others.
        room = min(count, self.free)

        def number(energies: Tensor) -> int:
            above = int((energies > floor).sum())
            return min(room, above)

        return self._leading(outside, energy, number)

    def random_directions(
        self, count: int, random: torch.Generator
    ) -> Float[Tensor, "d directions"]:
        """Return at most `count` random orthonormal directions outside M."""
        vectors = torch.randn(
            len(self.basis),
            min(count, self.free),
            dtype=torch.double,
            generator=random,
        )
        return self._clean(vectors)

    def grown(
        self,
        C: Float[Tensor, "d d"],
        epsilon: float,
        *,
        energy: Energy = "covariance",
        balance: float | None = None,
    ) -> Subspace:
        """Add leading directions of inputs with covariance C to M.

        M then contains about the share `epsilon` of the inputs' energy: the first task adds one
        direction fewer than that takes (but at least one), as in InfLoRA's code. Energies are
        squared singular values of (I - M Mᵀ) C, or of (I - M Mᵀ) H, with H the inputs themselves.

        With `balance`, the share of each direction decides instead of `epsilon`: it is added if
        balance · share > 1 / d, the capacity for learning that it costs.
        """
        outside = self._outside(C, energy)
        floor = _noise(C, energy)
        total = _energy(C, energy)
        missing = _energy(outside, energy)

        def number(energies: Tensor) -> int:
            sums = energies.cumsum(0)
            if balance is not None:
                shares = balance * energies / total
                count = (shares > 1 / len(C)).sum()
            elif self.dimension == 0:
                below = sums < epsilon * total
                count = below.sum().clamp_min(1)
            else:
                # The energies may be only the largest ones, so they are subtracted from the energy
                # that M misses. Each number of directions (0, 1, …) that misses too much asks for
                # one more.
                added = torch.cat([energies.new_zeros(1), sums])
                still_missing = missing - added
                count = (still_missing > (1 - epsilon) * total).sum()
            above = int((energies > floor).sum())
            return min(int(count), above)

        new = self._leading(
            outside,
            energy,
            number,
            # A threshold counts each of several equal eigenvalues, and only the whole
            # decomposition is sure to find them all.
            whole=balance is not None,
        )
        return self._with(new)

    def _outside(self, C: Tensor, energy: Energy) -> Tensor:
        """Return (I - M Mᵀ) C, or for features (I - M Mᵀ) C (I - M Mᵀ).

        If the complement is stored, the rows (for features, columns too) are in its coordinates.
        """
        if self.complement:
            half = self.basis.T @ C
            if energy == "covariance":
                return half
            return half @ self.basis
        half = self.outside(C)
        if energy == "covariance":
            return half
        # C is symmetric: its columns are projected as the rows of the transpose.
        return self.outside(half.T)

    def _leading(
        self, outside: Tensor, energy: Energy, number: Wanted, *, whole: bool = False
    ) -> Tensor:
        """Return the leading directions of a matrix from `_outside`."""
        vectors = leading(
            outside,
            number,
            square=energy == "covariance",
            whole=whole,
        )
        if self.complement:  # back from the complement's coordinates
            vectors = self.basis @ vectors
        return self._clean(vectors)

    def _clean(self, vectors: Tensor) -> Tensor:
        """Make vectors orthonormal and orthogonal to M, to full precision."""
        # One projection leaves a rounding error relative to the vectors before it, which may be
        # much longer than what is left of them; the second one removes it.
        for _ in range(2):
            vectors = self.outside(vectors)
            vectors = _orthonormal(vectors)
        return vectors

    def _with(self, new: Tensor) -> Subspace:
        """Return M with new directions, which are orthonormal and outside it."""
        if self.complement:
            # In the old complement's own coordinates, the new complement is what is orthogonal to
            # the new directions. It shrinks with each task, and stays the smaller one.
            rest = _complement(self.basis.T @ new)
            basis = self.basis @ rest
            return Subspace(basis.contiguous(), complement=True)
        basis = torch.cat([self.basis, new], dim=1)
        # Above half of the dimension, the complement has the smaller basis.
        d, vectors = basis.shape
        is_large = vectors > d / 2
        if is_large:
            basis = _complement(basis)
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


def _complement(basis: Tensor) -> Tensor:
    """Return an orthonormal basis of the orthogonal complement of an orthonormal basis."""
    vectors = basis.shape[1]
    whole = torch.linalg.qr(basis, mode="complete")[0]
    return whole[:, vectors:]
