"""Task vectors folded into a model with scales that can be moved, for searches."""

import contextlib
from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor, nn

from perdure import adapters
from perdure.task_vector import LowRank, TaskVector, by_depth


class Scaled:
    """Low-rank task vectors folded into a model with scales that can be moved, each at the cost of its own update.

    W = W0 + sum of scale_t ΔW_t. Of each layer the sum without the task that was moved last is kept beside W0, so that
    its next move adds one product B_t A_t to that sum; nothing is subtracted, so no error adds up.
    """

    def __init__(self, model: nn.Module, vectors: Sequence[TaskVector]):
        names = dict.fromkeys(name for vector in vectors for name in vector.entries)
        self.weights = {name: adapters.base_layer(model, name).weight for name in names}
        self.factors = [self._factors(vector) for vector in vectors]
        self.before = {name: weight.data for name, weight in self.weights.items()}
        self.now: dict[str, tuple[float, ...]] = {}
        self.rest: dict[str, tuple[int, list[tuple[int, float]], Tensor]] = {}

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
                weight.data = self._folded(name, wanted).to(weight.dtype)
                self.now[name] = wanted

    def _folded(self, name: str, wanted: tuple[float, ...]) -> Tensor:
        before, (last, _, _) = self.now.get(name), self.rest.get(name, (-1, [], None))
        moved = [t for t, scale in enumerate(wanted) if not before or scale != before[t]]
        # a search that goes on to the next task takes the last one back: the sum without the next is what it needs
        task = last if moved == [last] else next(t for t in moved if t != last)
        others = [(t, scale) for t, scale in enumerate(wanted) if t != task]
        if name not in self.rest or self.rest[name][:2] != (task, others):
            self.rest[name] = task, others, self._plus(name, self.before[name].float(), others)
        return self._plus(name, self.rest[name][2], [(task, wanted[task])])

    def _plus(self, name: str, base: Tensor, scales: Iterable[tuple[int, float]]) -> Tensor:
        held = [(scale, self.factors[t][name]) for t, scale in scales if name in self.factors[t]]
        if not held:
            return base
        B = torch.cat([scale * B for scale, (B, _) in held], dim=1)
        return torch.addmm(base, B, torch.cat([A for _, (_, A) in held]))
