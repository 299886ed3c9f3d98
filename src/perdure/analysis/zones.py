"""Zones of the pre-trained weights, and the share of a weight change that is in each of them."""

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

    With full orthonormal bases of outputs and inputs, ΔW is a sum of components along u_i
    v_jᵀ, and its energy ‖ΔW‖² is the sum of their energies. Each component is in exactly
    one zone, which the larger of i and j determines, so the shares of the zones sum to 1:

    - I: i and j are both among the first k*, the smallest number of leading singular values that
      make up at least half of the sum of all of them;
    - II: both belong to singular vectors of W0, but are not both among the first k*;
    - III: all other components, in directions that W0 does not use (empty if W0 is square and has
      full rank).

    The figure that SMILE reports for zone II leaves out the components with only one of i
    and j among the first k*; `mixed` returns their energy.

    Attributes
    ----------
    U, Vh
        The singular vectors of W0, as many as its numerical rank.
    leading
        The number k* of singular vectors in zone I.

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

        `mass` is the share of the sum of all singular values that those of zone I must reach.
        """
        U, S, Vh = svd(weight.detach().double().cpu())
        # A sum that reaches the share exactly must not miss it because of a rounding error.
        threshold = mass * S.sum() * (1 - 1e-12)
        below = S.cumsum(0) < threshold
        leading = int(below.sum()) + 1
        return cls(U, Vh, min(leading, len(S)))

    def energies(self, change: Entry) -> Float[Tensor, "3"]:
        """Return the part of ‖ΔW‖² in each of the zones I, II and III.

        Zone III is the remainder, so that no basis of the directions outside W0 is needed.
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
        """Return the part of ‖ΔW‖² in zone II with only one of the indices among the first k*."""
        leading = slice(0, self.leading)
        rest = slice(self.leading, None)
        above = self._within(change, leading, rest)
        below = self._within(change, rest, leading)
        return above + below

    def by_chance(self) -> Float[Tensor, "3"]:
        """Return the expected share of a random change in each zone, from the zone's dimensions."""
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
        """Return ‖Uᵀ ΔW V‖² for the selected left and right singular vectors."""
        U = self.U[:, left]
        V = self.Vh[right].T
        projected: Entry
        if isinstance(change, LowRank):
            # The factors are projected one by one, without the full matrix.
            B = U.T @ change.B.to(U)
            A = change.A.to(U) @ V
            projected = LowRank(B, A)
        else:
            full = dense(change).to(U)
            projected = U.T @ full @ V
        return max(0.0, inner(projected, projected))


def compute(subject: Subject) -> dict[str, object]:
    """Return the share of each zone in a run's task vectors, and in a random change."""
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
        # Layers are weighted by size, as they are in the ‖ΔW‖² of a random change.
        chance += zones.by_chance() * weight.numel()
        for task, vector in enumerate(vectors.values()):
            # In a layer that the task does not change, all energies are zero.
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
