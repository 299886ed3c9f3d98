"""Task vectors, plain numbers, and the reason to skip: what several diagnostics need."""

import math

from torch import Tensor

from perdure.analysis.subject import Subject
from perdure.merging.combine import task_vectors
from perdure.models import adapters
from perdure.models.bottleneck import BottleneckConfig
from perdure.models.matrices import is_matrix
from perdure.vectors.task_vector import TaskVector

MANY = 40  # with more tasks the values of single layers are left out: pairs grow with the square


class LeftOut(Exception):
    """The reason why a diagnostic makes no sense for a run."""


def vectors_of(subject: Subject) -> tuple[dict[str, TaskVector], list[str]]:
    """Return the tasks' ΔW, and the names of the linear layers among those that they change.

    Raises
    ------
    LeftOut
        The run has no ΔW.
    """
    if subject.frozen:
        raise LeftOut("The method trains nothing in the backbone, so there are no task vectors.")
    modules = [task.adapter for task in subject.learned]
    if any(isinstance(module.config, BottleneckConfig) for module in modules):
        raise LeftOut("Bottleneck adapters are no change of weights, so there is no ΔW.")
    vectors = task_vectors(modules, since=subject.rule.since)

    # A dict and not a set: the layers keep the order in which the tasks' modules name them.
    names: dict[str, None] = {}
    for vector in vectors.values():
        for name in vector.entries:
            # Full fine-tuning changes biases too; their names lead to no layer.
            if not name.endswith(".bias"):
                names[name] = None
    # Overlaps and zones need matrices, so embeddings and norms are left out here.
    model = subject.backbone.model
    linear = [name for name in names if is_matrix(adapters.base_layer(model, name))]
    return vectors, linear


def plain(values: Tensor) -> object:
    """Return nested lists of numbers; a value that is undefined becomes None."""
    if values.dim():
        return [plain(value) for value in values]
    return number(values.item())


def number(value: float | None) -> float | int | None:
    """Return six digits, more than the examples justify; None for a value that is not finite."""
    if value is None or not math.isfinite(value):
        return None
    return value if isinstance(value, int) else float(f"{value:.6g}")
