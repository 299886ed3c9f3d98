"""The subspace spanned by the inputs that a layer received from earlier tasks.

This is gradient projection memory (Saha et al. 2021, arXiv 2103.09762) in its dual form
(Liang & Li, CVPR 2023), which stores a basis of the subspace or of its complement,
whichever is smaller. All computations are in double precision.
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
"""The noise threshold for the eigenvalues of a covariance, relative to the sum of all of them.

Covariances are sums of products in single precision. With constant inputs, up to 7e-7 of
the sum was observed in directions that the inputs do not have.
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
        """Return a subspace of dimension zero, as it is before the first task."""
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
        """Return the leading orthonormal directions outside M of inputs with covariance C.

        The result has at most `count` directions, and fewer if the others are noise.

        Parameters
        ----------
        energy
            `covariance`: left singular vectors of (I - M Mᵀ) C, as in InfLoRA's code;
            `features`: left singular vectors of (I - M Mᵀ) H, where H are the inputs, as
            in the paper.
        """
        outside = self._outside(C, energy)
        floor = _noise(C, energy)
        # Never more than the dimensions that M leaves free, even with rounding errors.
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
        """Return M extended by leading directions of inputs with covariance C.

        The result contains about the share `epsilon` of the inputs' energy. As in
        InfLoRA's code, the first task adds one direction fewer than that share takes (but
        at least one). Energies are squared singular values of (I - M Mᵀ) C, or of (I - M
        Mᵀ) H, where H are the inputs.

        With `balance`, `epsilon` is ignored: a direction is added if balance · share > 1
        / d, where share is its share of the energy, and 1 / d is the capacity for
        learning that it costs.
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
                # The energies may be only the largest ones, so they are subtracted from
                # the energy that M misses. Count the numbers of directions (0, 1, …) that
                # still miss too much.
                added = torch.cat([energies.new_zeros(1), sums])
                still_missing = missing - added
                count = (still_missing > (1 - epsilon) * total).sum()
            above = int((energies > floor).sum())
            return min(int(count), above)

        new = self._leading(
            outside,
            energy,
            number,
            # A threshold counts each of several equal eigenvalues, and only the full
            # decomposition is sure to find them all.
            whole=balance is not None,
        )
        return self._with(new)

    def _outside(self, C: Tensor, energy: Energy) -> Tensor:
        """Return (I - M Mᵀ) C or, if `energy` is `features`, (I - M Mᵀ) C (I - M Mᵀ).

        If the complement is stored, rows (with `features`, columns too) are in the
        coordinates of its basis.
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
        """Return the vectors made orthonormal, and orthogonal to M, to full precision."""
        # The rounding error of one projection is relative to the vectors before it, which
        # may be much longer than the vectors after it. The second projection removes the
        # error.
        for _ in range(2):
            vectors = self.outside(vectors)
            vectors = _orthonormal(vectors)
        return vectors

    def _with(self, new: Tensor) -> Subspace:
        """Return M extended by new directions, which must be orthonormal and outside M."""
        if self.complement:
            # In the coordinates of the old complement, the new complement is everything
            # that is orthogonal to the new directions. It shrinks with each task, so it
            # stays smaller than M.
            rest = _complement(self.basis.T @ new)
            basis = self.basis @ rest
            return Subspace(basis.contiguous(), complement=True)
        basis = torch.cat([self.basis, new], dim=1)
        # If M has more than half of the dimensions, the complement has the smaller basis.
        d, vectors = basis.shape
        is_large = vectors > d / 2
        if is_large:
            basis = _complement(basis)
        return Subspace(basis.contiguous(), complement=is_large)


def _energy(X: Tensor, energy: Energy) -> Tensor:
    """Return the sum of the squared singular values of a covariance, or of the inputs."""
    return X.square().sum() if energy == "covariance" else X.trace()


def _noise(C: Tensor, energy: Energy) -> Tensor:
    """Return the energy below which a direction may be only noise."""
    floor = NOISE * C.trace()
    return floor**2 if energy == "covariance" else floor


def _orthonormal(vectors: Tensor) -> Tensor:
    return torch.linalg.qr(vectors)[0]


def _complement(basis: Tensor) -> Tensor:
    """Return an orthonormal basis of the orthogonal complement of an orthonormal basis."""
    vectors = basis.shape[1]
    whole = torch.linalg.qr(basis, mode="complete")[0]
    return whole[:, vectors:]
