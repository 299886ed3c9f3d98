"""Zones of the pre-trained weights: how a change is distributed over their singular directions."""

from __future__ import annotations

from dataclasses import dataclass

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

    With full orthonormal bases of outputs and inputs, ΔW is a sum of components along u_i v_jᵀ,
    and its energy ‖ΔW‖² is the sum of theirs. The greater of i and j decides the one zone in which
    a component counts, so that the shares of the zones add up to 1:

    - I: both among the first k*, the smallest number of singular values with at least half of
      their sum;
    - II: both among the singular vectors of W0, and not both among the first k*;
    - III: the rest, which W0 itself does not use (empty if W0 is square and has full rank).

    SMILE's own figure for II leaves out the blocks between I and II (i in one, j in the other):
    `mixed`.

    Attributes
    ----------
    U, Vh
        The singular vectors of W0, reduced to its numerical rank.
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
        """Return the zones of a weight.

        `mass` is the least share of the singular values' sum that zone I holds.
        """
        U, S, Vh = svd(weight.detach().double().cpu())
        # A sum that reaches its share exactly must not miss it by a rounding error.
        threshold = mass * S.sum() * (1 - 1e-12)
        below = S.cumsum(0) < threshold
        leading = int(below.sum()) + 1
        return cls(U, Vh, min(leading, len(S)))

    def energies(self, change: Entry) -> Float[Tensor, "3"]:
        """Return ‖ΔW‖² in the zones I, II and III.

        Zone III gets what remains, so that the directions outside W0 need no basis of their own.
        """
        leading = slice(0, self.leading)
        every = slice(None)
        energy = max(0.0, inner(change, change))
        first = self._within(change, leading, leading)
        inside = self._within(change, every, every)
        zones = [
            first,
            inside - first,
            energy - inside,
        ]
        # Differences of nearly equal numbers may fall below 0.
        return torch.tensor(zones, dtype=torch.double).clamp_min(0)

    def mixed(self, change: Entry) -> float:
        """Return the part of ‖ΔW‖² in zone II with only one side among the first k*."""
        leading = slice(0, self.leading)
        rest = slice(self.leading, None)
        above = self._within(change, leading, rest)
        below = self._within(change, rest, leading)
        return above + below

    def by_chance(self) -> Float[Tensor, "3"]:
        """Return a random change's expected shares: those of the zones in the matrix entries."""
        k = self.leading
        r = len(self.Vh)  # the rank of W0
        outputs = self.U.shape[0]
        inputs = self.Vh.shape[1]
        size = outputs * inputs
        entries = [
            k * k,
            r * r - k * k,
            size - r * r,
        ]
        return torch.tensor(entries, dtype=torch.double) / size

    def _within(self, change: Entry, left: slice, right: slice) -> float:
        """Return ‖Uᵀ ΔW V‖² for some of the singular vectors on each side."""
        U = self.U[:, left]
        V = self.Vh[right].T
        projected: Entry
        if isinstance(change, LowRank):
            # The factors are projected one by one: no full matrix is made.
            B = U.T @ change.B.to(U)
            A = change.A.to(U) @ V
            projected = LowRank(B, A)
        else:
            full = dense(change).to(U)
            projected = U.T @ full @ V
        return max(0.0, inner(projected, projected))


def compute(subject: Subject) -> dict[str, object]:
    """Return the numbers of this diagnostic for a run."""
    vectors, linear = vectors_of(subject)
    count = len(vectors)
    energies = torch.zeros(
        len(linear),
        count,
        3,
        dtype=torch.double,
    )
    mixed = torch.zeros(count, dtype=torch.double)
    chance = torch.zeros(3, dtype=torch.double)
    model = subject.backbone.model
    for layer, name in enumerate(linear):
        weight = matrix(adapters.base_layer(model, name))
        zones = Zones.of(weight)
        # Layers count by their size, as they do in ‖ΔW‖² of a random change.
        chance += zones.by_chance() * weight.numel()
        for task, vector in enumerate(vectors.values()):
            # A layer that a task does not change has no energy.
            if name in vector:
                change = vector[name]
                energies[layer, task] = zones.energies(change)
                mixed[task] += zones.mixed(change)
    by_task = energies.sum(0)
    total = by_task.sum(1)
    layers = linear if count <= MANY else []
    layer_shares = energies / energies.sum(2, keepdim=True)
    return {
        "layers": layers,
        "shares": plain(by_task / total[:, None]),
        "mixed": plain(mixed / total),
        "by_chance": plain(chance / chance.sum()),
        "layer_shares": plain(layer_shares[: len(layers)]),
    }
