"""What the files of single diagnostics share when they compute: task vectors, numbers, and why one is left out."""

import math
from typing import Any

from torch import Tensor

from perdure.analysis.subject import Subject
from perdure.merging.combine import task_vectors
from perdure.models import adapters
from perdure.models.bottleneck import BottleneckConfig
from perdure.models.matrices import is_matrix
from perdure.vectors.task_vector import TaskVector

MANY = 40  # with more tasks the values of single layers are left out: pairs grow with the square


class LeftOut(Exception):
    """Why a diagnostic makes no sense for a run."""


def vectors_of(subject: Subject) -> tuple[dict[str, TaskVector], list[str]]:
    """Return the tasks' ΔW, and the names of the linear layers among what they change."""
    if subject.frozen:
        raise LeftOut("The method trains nothing in the backbone, so there are no task vectors.")
    learned = [task.adapter for task in subject.learned]
    if any(isinstance(adapter.config, BottleneckConfig) for adapter in learned):
        raise LeftOut("Bottleneck adapters are no change of weights, so there is no ΔW.")
    vectors = task_vectors(learned, since=subject.rule.since)
    names = dict.fromkeys(
        name for vector in vectors.values() for name in vector.entries if name[-5:] != ".bias"
    )
    model = subject.backbone.model
    return vectors, [name for name in names if is_matrix(adapters.base_layer(model, name))]


def plain(values: Tensor) -> Any:
    """As lists of numbers; what is not defined is None."""
    return [plain(value) for value in values] if values.dim() else number(values.item())


def number(value: float | None) -> float | int | None:
    """Six digits, which is more than the examples allow; None where it is not finite."""
    if value is None or not math.isfinite(value):
        return None
    return value if isinstance(value, int) else float(f"{value:.6g}")
