"""Task vectors folded into a model with scales that can be moved, for searches."""

import contextlib
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from perdure.models import adapters
from perdure.models.matrices import oriented
from perdure.vectors.task_vector import LowRank, TaskVector, by_depth

REFRESH = 32
"""After so many updates in place a sum is made anew: each adds a rounding error of single precision."""


class Scaled:
    """Low-rank task vectors folded into a model with scales that can be moved, each at the cost of its own update.

    W = W0 + sum of scale_t ΔW_t is kept in single precision; a move of scale_t by d adds d B_t A_t to it.
    """

    def __init__(self, model: nn.Module, vectors: Sequence[TaskVector]):
        names = dict.fromkeys(name for vector in vectors for name in vector.entries)
        self.layers = {name: adapters.base_layer(model, name) for name in names}
        self.weights = {name: layer.weight for name, layer in self.layers.items()}
        self.factors = [self._factors(vector) for vector in vectors]
        self.before = {name: weight.data for name, weight in self.weights.items()}
        self.sums: dict[str, Tensor] = {}
        self.now: dict[str, tuple[float, ...]] = {}
        self.updates = dict.fromkeys(names, 0)

    def _factors(self, vector: TaskVector) -> dict[str, tuple[Tensor, Tensor]]:
        device = {name: weight.device for name, weight in self.weights.items()}
        return {
            name: (value.B.float().to(device[name]), value.A.float().to(device[name]))
            for name, value in vector.items()
            if isinstance(value, LowRank)
        }

    @classmethod
    @contextlib.contextmanager
    def on(cls, model: nn.Module, vectors: Sequence[TaskVector]) -> Iterator["Scaled"]:
        """With the weights put back afterwards, bit for bit."""
        scaled = cls(model, vectors)
        try:
            yield scaled
        finally:
            for name, weight in scaled.weights.items():
                weight.data = scaled.before[name]

    def move(self, scales: Sequence[Sequence[float]]) -> None:
        """Give each task its scale, or one for each part of equal depth."""
        part = by_depth(self.weights, len(scales[0]))
        for name, weight in self.weights.items():
            wanted = tuple(of_task[part[name]] for of_task in scales)
            if wanted != self.now.get(name):
                self._update(name, wanted)
                self.now[name] = wanted
                weight.data = self.sums[name].to(weight.dtype)

    def _update(self, name: str, wanted: tuple[float, ...]) -> None:
        steps = [
            (t, to - now)
            for t, (to, now) in enumerate(zip(wanted, self.now.get(name, wanted), strict=True))
        ]
        steps = [(t, step) for t, step in steps if step]
        if name not in self.sums or 2 * len(steps) > len(wanted) or self.updates[name] == REFRESH:
            self.sums[name], steps = self.before[name].float().clone(), list(enumerate(wanted))
            self.updates[name] = 0
        held = [(step, *self.factors[t][name]) for t, step in steps if name in self.factors[t]]
        if held:
            B = torch.cat([step * B for step, B, _ in held], dim=1)
            oriented(self.layers[name], self.sums[name]).addmm_(
                B, torch.cat([A for _, _, A in held])
            )
            self.updates[name] += 1
