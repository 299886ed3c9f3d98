"""Task vectors folded into a model, with scales that a search can change cheaply."""

import contextlib
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from perdure.models import adapters, placement
from perdure.models.matrices import is_transposed, oriented
from perdure.vectors.task_vector import LowRank, TaskVector, by_depth

# The number of in-place updates after which a sum is recomputed, because each update adds
# a rounding error in single precision.
REFRESH = 32


class Scaled:
    """Low-rank task vectors folded into a model's weights, with adjustable scales.

    W = W0 + Σ scale_t ΔW_t is stored in single precision, where ΔW_t = B_t A_t is the
    change made by task t. Changing scale_t by d adds d B_t A_t, so the cost depends on
    the number of tasks whose scale changes.

    Attributes
    ----------
    layers, weights
        The layers that are changed by at least one task vector, and their weights in the model.
    factors
        For each task, the factors B and A of each layer.
    before
        The original weight W0 of each layer, which is restored at the end.
    sums
        The weight W of each layer in single precision.
    now
        The current scales of each layer.
    updates
        The number of in-place updates of each layer since W was computed from W0.
    """

    def __init__(self, model: nn.Module, vectors: Sequence[TaskVector]):
        # Use `data`, not the parameter, because a search changes weights outside autograd.
        self.layers: dict[str, nn.Module] = {}
        self.weights: dict[str, nn.Parameter] = {}
        self.before: dict[str, Tensor] = {}
        for vector in vectors:
            for name in vector.entries:
                layer = adapters.base_layer(model, name)
                self.layers[name] = layer
                self.weights[name] = layer.weight
                self.before[name] = placement.stored(layer.weight)
        self.factors = [self._factors(vector) for vector in vectors]
        self.sums: dict[str, Tensor] = {}
        self.now: dict[str, tuple[float, ...]] = {}
        self.updates: dict[str, int] = {}

    def _factors(self, vector: TaskVector) -> dict[str, tuple[Tensor, Tensor]]:
        """Return B and A for each layer in single precision, on the layer's device."""
        factors: dict[str, tuple[Tensor, Tensor]] = {}
        for name, change in vector.items():
            # A search uses this class only if all changes are low-rank (`evaluation.scales`).
            if not isinstance(change, LowRank):
                continue
            weight = self.weights[name]
            B = change.B.float().to(weight.device)
            A = change.A.float().to(weight.device)
            # Of a sharded weight, only the rows that this process stores are changed here.
            if is_transposed(self.layers[name]):
                A = placement.like(A.T, weight).T
            else:
                B = placement.like(B, weight)
            factors[name] = B, A
        return factors

    @classmethod
    @contextlib.contextmanager
    def on(cls, model: nn.Module, vectors: Sequence[TaskVector]) -> Iterator["Scaled"]:
        """Yield a `Scaled` for a model, and restore the model's weights bit for bit on exit."""
        scaled = cls(model, vectors)
        try:
            yield scaled
        finally:
            for name, weight in scaled.weights.items():
                placement.put(weight, scaled.before[name])

    def move(self, scales: Sequence[Sequence[float]]) -> None:
        """Set the scale of each task, or its scales for groups of layers of similar depth.

        Parameters
        ----------
        scales
            For each task, a list with one scale, or with one for each group of layers.
        """
        groups = by_depth(self.weights, len(scales[0]))
        for name, weight in self.weights.items():
            group = groups[name]
            layer_scales = tuple(task_scales[group] for task_scales in scales)
            if layer_scales == self.now.get(name):
                continue
            self._update(name, layer_scales)
            self.now[name] = layer_scales
            # A bfloat16 weight is rounded from the sum each time, so rounding errors do
            # not accumulate. In single precision, the weight shares memory with the sum.
            placement.put(weight, self.sums[name].to(weight.dtype))

    def _update(self, name: str, scales: tuple[float, ...]) -> None:
        """Update a layer's sum to new scales, either in place or by recomputing it from W0."""
        steps = self._steps(name, scales)
        # If most scales change, recomputing from W0 costs at most twice as much,
        # and removes all rounding errors.
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
            # Σ step_t B_t A_t is a single product of the concatenated factors.
            B = torch.cat(columns, dim=1)
            A = torch.cat(rows)
            oriented(self.layers[name], self.sums[name]).addmm_(B, A)
            self.updates[name] += 1

    def _steps(self, name: str, scales: tuple[float, ...]) -> dict[int, float]:
        """Return the difference between the new and old scale of each task whose scale changes."""
        # A layer without scales has no sum yet, so `_update` starts from W0 anyway.
        before = self.now.get(name, scales)
        steps: dict[int, float] = {}
        for task, scale in enumerate(scales):
            step = scale - before[task]
            if step:
                steps[task] = step
        return steps
