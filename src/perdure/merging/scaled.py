"""Task vectors folded into a model, with scales that a search can move cheaply."""

import contextlib
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from perdure.models import adapters
from perdure.models.matrices import oriented
from perdure.vectors.task_vector import LowRank, TaskVector, by_depth

# The number of updates in place after which a sum is computed anew: each of them adds a rounding
# error of single precision.
REFRESH = 32


class Scaled:
    """Low-rank task vectors in the weights of a model, with scales that can be moved.

    W = W0 + Σ scale_t ΔW_t is kept in single precision, with ΔW_t = B_t A_t of task t.
    To move scale_t by d adds d B_t A_t, so a move costs only the tasks whose scale changes.

    Attributes
    ----------
    layers, weights
        The layers that any of the task vectors changes, and their weights in the model.
    factors
        B and A of each layer, for each task.
    before
        W0, to be put back.
    sums
        W in single precision.
    now
        The scales that each sum has at present.
    updates
        The number of updates in place since each sum was computed.
    """

    def __init__(self, model: nn.Module, vectors: Sequence[TaskVector]):
        # `data`, not the parameter: a search changes weights outside of autograd.
        self.layers: dict[str, nn.Module] = {}
        self.weights: dict[str, nn.Parameter] = {}
        self.before: dict[str, Tensor] = {}
        for vector in vectors:
            for name in vector.entries:
                layer = adapters.base_layer(model, name)
                self.layers[name] = layer
                self.weights[name] = layer.weight
                self.before[name] = layer.weight.data
        self.factors = [self._factors(vector) for vector in vectors]
        self.sums: dict[str, Tensor] = {}
        self.now: dict[str, tuple[float, ...]] = {}
        self.updates: dict[str, int] = {}

    def _factors(self, vector: TaskVector) -> dict[str, tuple[Tensor, Tensor]]:
        """Return B and A of each layer in single precision, on the device of the layer."""
        factors: dict[str, tuple[Tensor, Tensor]] = {}
        for name, change in vector.items():
            # A search comes here only if all changes are low-rank (`evaluation.scales`).
            if not isinstance(change, LowRank):
                continue
            device = self.weights[name].device
            B = change.B.float().to(device)
            A = change.A.float().to(device)
            factors[name] = B, A
        return factors

    @classmethod
    @contextlib.contextmanager
    def on(cls, model: nn.Module, vectors: Sequence[TaskVector]) -> Iterator["Scaled"]:
        """Yield the scaled vectors; afterwards the weights are as before, bit for bit."""
        scaled = cls(model, vectors)
        try:
            yield scaled
        finally:
            for name, weight in scaled.weights.items():
                weight.data = scaled.before[name]

    def move(self, scales: Sequence[Sequence[float]]) -> None:
        """Give each task one scale, or one for each group of layers of equal depth."""
        groups = by_depth(self.weights, len(scales[0]))
        for name, weight in self.weights.items():
            group = groups[name]
            layer_scales = tuple(task_scales[group] for task_scales in scales)
            if layer_scales == self.now.get(name):
                continue
            self._update(name, layer_scales)
            self.now[name] = layer_scales
            # A model in bfloat16 is rounded from the sum at each move, so that its own rounding
            # never adds up. In single precision the weight shares memory with the sum.
            weight.data = self.sums[name].to(weight.dtype)

    def _update(self, name: str, scales: tuple[float, ...]) -> None:
        """Bring the sum of a layer to new scales: in place, or from W0."""
        steps = self._steps(name, scales)
        # Where most scales move, a sum from W0 costs at most twice as much,
        # and drops all rounding.
        most_move = 2 * len(steps) > len(scales)
        is_new = name not in self.sums
        is_due = self.updates.get(name) == REFRESH
        if is_new or most_move or is_due:
            self.sums[name] = self.before[name].float().clone()
            self.updates[name] = 0
            steps = dict(enumerate(scales))

        columns: list[Tensor] = []
        rows: list[Tensor] = []
        for task, step in steps.items():
            factors = self.factors[task].get(name)
            if factors is None:
                continue
            B, A = factors
            columns.append(step * B)
            rows.append(A)
        if rows:
            # Σ step_t B_t A_t is one product of the factors set side by side.
            B = torch.cat(columns, dim=1)
            A = torch.cat(rows)
            oriented(self.layers[name], self.sums[name]).addmm_(B, A)
            self.updates[name] += 1

    def _steps(self, name: str, scales: tuple[float, ...]) -> dict[int, float]:
        """Return how far the scale of each task moves, without the tasks that stay."""
        # A layer that was never moved has no sum yet, and `_update` starts from W0 anyway.
        before = self.now.get(name, scales)
        steps: dict[int, float] = {}
        for task, scale in enumerate(scales):
            step = scale - before[task]
            if step:
                steps[task] = step
        return steps
