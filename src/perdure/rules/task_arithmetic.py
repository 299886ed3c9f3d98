"""Task arithmetic (Ilharco et al. 2023), the second stage of PIC: add the task vectors, scaled."""

import math
from collections.abc import Mapping

from perdure.errors import InputError
from perdure.merging.rule import nature
from perdure.vectors.task_vector import TaskVector, by_depth, total

Scale = float | str | dict[str, float | list[float]]


NAMED = ("1/n", "1/sqrt(n)")


def _check(scale: Scale) -> None:
    number = isinstance(scale, int | float) and math.isfinite(scale)
    if not (number or isinstance(scale, Mapping) or scale in NAMED):
        allowed = f"a number, a mapping by task, or one of {[*NAMED, 'search']}"
        raise InputError(f"`scale` of `task_arithmetic` must be {allowed}, got `{scale}`.")


@nature("order-free", state="one task vector", layerwise=True, check=_check)
def task_arithmetic(vectors: dict[str, TaskVector], *, scale: Scale = "1/n") -> TaskVector:
    """Theta = Theta_pre + scale · sum of tau_t over the n tasks.

    Parameters
    ----------
    scale
        lambda: a number, `"1/n"` (the mean), `"1/sqrt(n)"`; in a run also `"search"`, by validation accuracy. A mapping
        gives each task a lambda of its own, or a list of them for parts of equal depth, from the input on.

    Examples
    --------
    >>> import torch
    >>> vectors = {"a": TaskVector({"w": torch.tensor([1.0, 0.0])}), "b": TaskVector({"w": torch.tensor([1.0, 2.0])})}
    >>> task_arithmetic(vectors, scale=0.25)["w"].tolist()
    [0.5, 0.5]

    References
    ----------
    Ilharco et al., Editing Models with Task Arithmetic, arXiv 2212.04089; Zeng et al., arXiv 2502.10966.
    """
    if isinstance(scale, Mapping):
        for task in vectors:
            given = scale.get(task)
            numbers = given if isinstance(given, list) else [given]
            if not numbers or not all(
                isinstance(one, int | float) and math.isfinite(one) for one in numbers
            ):
                raise InputError(
                    f"`scale` of `task_arithmetic` has no number for the task `{task}`, but {given!r}."
                )
        return total([_scaled(vector, scale[task], vectors) for task, vector in vectors.items()])
    n = len(vectors)
    named = {"1/n": 1 / n, "1/sqrt(n)": n**-0.5}
    return total(list(vectors.values())) * (named[scale] if isinstance(scale, str) else scale)


def _scaled(
    vector: TaskVector, scale: float | list[float], vectors: dict[str, TaskVector]
) -> TaskVector:
    """Times a number, or times one for each part of equal depth of the layers that any task changes."""
    if not isinstance(scale, list):
        return vector * scale
    part = by_depth([name for each in vectors.values() for name in each.entries], len(scale))
    return TaskVector({name: value * scale[part[name]] for name, value in vector.items()})
