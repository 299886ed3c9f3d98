"""Where a change of weights lies among the pre-trained weights' own directions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from perdure.analysis.shared import MANY, plain, vectors_of
from perdure.analysis.subject import Subject
from perdure.models import adapters
from perdure.models.matrices import matrix
from perdure.vectors.task_vector import Entry, LowRank, dense, inner, svd


@dataclass(frozen=True)
class Zones:
    """The zones of a pre-trained weight W0 = U S Vᵀ (SMILE, Tang et al. 2024, arXiv 2408.10174).

    With full orthonormal bases of outputs and inputs, ΔW is a sum of parts along u_i v_jᵀ, and its energy ‖ΔW‖² the sum
    of theirs. Each part is counted in one zone, by the greater of i and j, so that the shares of the zones add up to 1:

    - I: both among the first k*, the smallest number of singular values with at least half of their sum;
    - II: both among the singular vectors of W0, and not both among the first k*;
    - III: the rest, which W0 itself does not use (none where W0 is square and of full rank).

    SMILE's own figure for II leaves out the blocks between I and II (i in one, j in the other): `mixed`.

    Attributes
    ----------
    U, Vh
        Of W0's decomposition, reduced to its numerical rank.
    leading
        k*.

    Examples
    --------
    >>> zones = Zones.of(torch.diag(torch.tensor([5.0, 3.0, 0.0])))
    >>> zones.leading
    1
    >>> zones.energies(torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 1.0, 0.0]])).tolist()
    [1.0, 1.0, 1.0]
    """

    U: Float[Tensor, "out r"]
    Vh: Float[Tensor, "r in"]
    leading: int

    @classmethod
    def of(cls, weight: Float[Tensor, "out in"], *, mass: float = 0.5) -> Zones:
        """The zones of a weight; `mass` is the share of the singular values' sum that zone I has at least."""
        U, S, Vh = svd(weight.detach().double().cpu())
        below = S.cumsum(0) < mass * S.sum() * (1 - 1e-12)
        return cls(U, Vh, min(int(below.sum()) + 1, len(S)))

    def energies(self, change: Entry) -> Float[Tensor, "3"]:
        """The parts of ‖ΔW‖² in the zones I, II and III, of which the last is what remains."""
        k, energy = self.leading, max(0.0, inner(change, change))
        first = self._within(change, slice(0, k), slice(0, k))
        inside = self._within(change, slice(None), slice(None))
        return torch.tensor([first, inside - first, energy - inside], dtype=torch.double).clamp_min(
            0
        )

    def mixed(self, change: Entry) -> float:
        """The part of ‖ΔW‖² that is in zone II with only one of its two sides among the first k*."""
        k, rest = self.leading, slice(self.leading, None)
        return self._within(change, slice(0, k), rest) + self._within(change, rest, slice(0, k))

    def by_chance(self) -> Float[Tensor, "3"]:
        """The shares that a random change would have: those of the zones in the entries of the matrix."""
        k, r, size = self.leading, len(self.Vh), self.U.shape[0] * self.Vh.shape[1]
        return torch.tensor([k * k, r * r - k * k, size - r * r], dtype=torch.double) / size

    def _within(self, change: Entry, left: slice, right: slice) -> float:
        """‖Uᵀ ΔW V‖² for some of the singular vectors on each side."""
        U, V = self.U[:, left], self.Vh[right].T
        if isinstance(change, LowRank):
            found: Entry = LowRank(U.T @ change.B.to(U), change.A.to(U) @ V)
        else:
            found = U.T @ dense(change).to(U) @ V
        return max(0.0, inner(found, found))


def compute(subject: Subject) -> dict[str, Any]:
    """Return the numbers of this diagnostic for a run."""
    vectors, linear = vectors_of(subject)
    energies = torch.zeros(len(linear), len(vectors), 3, dtype=torch.double)
    mixed, chance = (
        torch.zeros(len(vectors), dtype=torch.double),
        torch.zeros(3, dtype=torch.double),
    )
    for i, name in enumerate(linear):
        weight = matrix(adapters.base_layer(subject.backbone.model, name))
        zones = Zones.of(weight)
        chance += zones.by_chance() * weight.numel()
        for j, vector in enumerate(vectors.values()):
            if name in vector:
                energies[i, j] = zones.energies(vector[name])
                mixed[j] += zones.mixed(vector[name])
    total = energies.sum(0)
    layers = linear if len(vectors) <= MANY else []
    return {
        "layers": layers,
        "shares": plain(total / total.sum(1, keepdim=True)),
        "mixed": plain(mixed / total.sum(1)),
        "by_chance": plain(chance / chance.sum()),
        "layer_shares": plain((energies / energies.sum(2, keepdim=True))[: len(layers)]),
    }
