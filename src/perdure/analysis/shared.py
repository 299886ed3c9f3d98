"""Code that several diagnostics share: task vectors, plain numbers, and the exception `LeftOut`."""

import math

from torch import Tensor

from perdure.analysis.subject import Subject
from perdure.merging.combine import task_vectors
from perdure.models import adapters
from perdure.models.bottleneck import BottleneckConfig
from perdure.models.matrices import is_matrix
from perdure.vectors.task_vector import TaskVector

MANY = 40  # with more tasks, values per layer are left out: the number of pairs grows too fast


class LeftOut(Exception):
    """Raised if a diagnostic makes no sense for a run; the message gives the reason."""


def vectors_of(subject: Subject) -> tuple[dict[str, TaskVector], list[str]]:
    """Return the task vectors of a run, and the names of the linear layers that they change.

    Raises
    ------
    LeftOut
        The run has no task vectors.
    """
    if subject.frozen:
        raise LeftOut("The method does not train the backbone, so there are no task vectors.")
    modules = [task.adapter for task in subject.learned]
    if any(isinstance(module.config, BottleneckConfig) for module in modules):
        raise LeftOut("Bottleneck adapters do not change any weights, so there is no ΔW.")
    vectors = task_vectors(modules, since=subject.rule.since)

    # A dict rather than a set, to keep the layers in the order of the task vectors.
    names: dict[str, None] = {}
    for vector in vectors.values():
        for name in vector.entries:
            # Full fine-tuning also changes biases, whose names are not those of a layer.
            if not name.endswith(".bias"):
                names[name] = None
    # Overlaps and zones need matrices, so embeddings and norms are left out here.
    model = subject.backbone.model
    linear = [name for name in names if is_matrix(adapters.base_layer(model, name))]
    return vectors, linear


def plain(values: Tensor) -> object:
    """Convert a tensor to nested lists of numbers; undefined or infinite values become None."""
    if values.dim():
        return [plain(value) for value in values]
    return number(values.item())


def number(value: float | None) -> float | int | None:
    """Round a value to six significant digits, more than the number of examples justifies.

    Return None for a value that is missing, infinite or undefined.
    """
    if value is None or not math.isfinite(value):
        return None
    return value if isinstance(value, int) else float(f"{value:.6g}")
