"""Task arithmetic (Ilharco et al. 2023), the second stage of PIC: a scaled sum."""

import math
from collections.abc import Mapping

from perdure.errors import InputError
from perdure.merging.rule import nature
from perdure.vectors.task_vector import Entry, TaskVector, by_depth, total

PerTask = float | list[float]
Scale = float | str | dict[str, PerTask]
Vectors = Mapping[str, TaskVector]
NAMED = ("1/n", "1/sqrt(n)")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _check(scale: Scale) -> None:
    if not (_is_number(scale) or isinstance(scale, Mapping) or scale in NAMED):
        allowed = f"a number, a mapping by task, or one of {[*NAMED, 'search']}"
        raise InputError(f"`scale` of `task_arithmetic` must be {allowed}, got `{scale}`.")


@nature("order-free", state="one task vector", layerwise=True, check=_check)
def task_arithmetic(vectors: dict[str, TaskVector], *, scale: Scale = "1/n") -> TaskVector:
    """Sum and scale the n task vectors tau_t: Theta = Theta_pre + scale · sum of tau_t.

    Parameters
    ----------
    scale
        A number, `"1/n"` (the mean), `"1/sqrt(n)"` or, in a run, `"search"` (on validation data).
        A mapping sets the scale of each task, as a number or a list with one number per group of
        layers. The groups divide the model evenly by depth, from input to output.

    Examples
    --------
    >>> import torch
    >>> a = TaskVector({"w": torch.tensor([1.0, 0.0])})
    >>> b = TaskVector({"w": torch.tensor([1.0, 2.0])})
    >>> task_arithmetic({"a": a, "b": b}, scale=0.25)["w"].tolist()
    [0.5, 0.5]

    References
    ----------
    Ilharco et al., Editing Models with Task Arithmetic, arXiv 2212.04089; PIC, arXiv 2502.10966.
    """
    if isinstance(scale, Mapping):
        _check_each(scale, vectors)
        scaled = [_scaled(vector, scale[task], vectors) for task, vector in vectors.items()]
        return total(scaled)
    if isinstance(scale, str):
        n = len(vectors)
        named: dict[str, float] = {"1/n": 1 / n, "1/sqrt(n)": n**-0.5}
        scale = named[scale]
    return total(list(vectors.values())) * scale


def _check_each(scale: Mapping[str, PerTask], vectors: Vectors) -> None:
    for task in vectors:
        given = scale.get(task)
        numbers = given if isinstance(given, list) else [given]
        all_numbers = all(_is_number(number) for number in numbers)
        if not numbers or not all_numbers:
            problem = f"needs a number for the task `{task}`, got {given!r}"
            raise InputError(f"`scale` of `task_arithmetic` {problem}.")


def _scaled(vector: TaskVector, scale: PerTask, vectors: Vectors) -> TaskVector:
    """Scale a task vector by one number, or by one number per group of layers of similar depth."""
    if not isinstance(scale, list):
        return vector * scale
    # Group the layers of all tasks together, so that a group means the same for each task.
    names: set[str] = set().union(*[each.entries for each in vectors.values()])
    part_of = by_depth(names, len(scale))
    entries: dict[str, Entry] = {}
    for name, entry in vector.items():
        entries[name] = entry * scale[part_of[name]]
    return TaskVector(entries)
