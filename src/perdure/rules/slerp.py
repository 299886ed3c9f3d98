"""Spherical interpolation of two task vectors."""

import math
from typing import Annotated, Literal

from annotated_types import Ge, Le

from perdure.errors import InputError
from perdure.merging.rule import nature
from perdure.vectors.task_vector import Entry, TaskVector, shapes

Per = Literal["layer", "model"]


@nature("sequential", state="two task vectors; no third task can be added", most=2)
def slerp(
    vectors: dict[str, TaskVector], *, t: Annotated[float, Ge(0), Le(1)] = 0.5, per: Per = "layer"
) -> TaskVector:
    """Interpolate two task vectors: (sin((1 - t) phi) tau_1 + sin(t phi) tau_2) / sin(phi).

    phi is the angle between them. If they are nearly parallel (|cos phi| > 0.9995), or
    one of them is zero, the result is (1 - t) tau_1 + t tau_2. At t = 1/2, the order does
    not matter. A single task vector is returned unchanged.

    Parameters
    ----------
    t
        The position between the first task vector (0) and the second (1).
    per
        Use one angle per `layer`, or a single one for the `model`.

    Examples
    --------
    >>> import torch
    >>> a = TaskVector({"w": torch.tensor([1.0, 0.0])})
    >>> b = TaskVector({"w": torch.tensor([0.0, 1.0])})
    >>> [round(x, 4) for x in slerp({"a": a, "b": b})["w"].tolist()]
    [0.7071, 0.7071]

    References
    ----------
    Shoemake, Animating Rotation with Quaternion Curves, SIGGRAPH 1985. mergekit interpolates
    the weights of models, with one angle per tensor; this rule interpolates task vectors.
    """
    if len(vectors) > 2:
        given = f"{len(vectors)}: {', '.join(vectors)}"
        raise InputError(f"`slerp` interpolates two task vectors, got {given}.")
    if len(vectors) == 1:
        return next(iter(vectors.values()))
    first, second = vectors.values()
    names = shapes(vectors)
    if per == "model":
        return _between(first, second, t)
    entries: dict[str, Entry] = {}
    # A missing layer counts as zero, which has no angle, so the interpolation is linear.
    for name in names:
        layer = _between(
            _only(first, name),
            _only(second, name),
            t,
        )
        entries.update(layer.items())
    return TaskVector(entries)


def _only(vector: TaskVector, name: str) -> TaskVector:
    return TaskVector({name: vector[name]} if name in vector else {})


def _between(first: TaskVector, second: TaskVector, t: float) -> TaskVector:
    cosine = first.cosine(second)
    # sin(phi) is near 0 for (anti)parallel vectors, and a zero vector has no angle.
    a_zero = not first.norm() * second.norm()
    if abs(cosine) > 0.9995 or a_zero:
        return first * (1 - t) + second * t
    phi = math.acos(cosine)
    sine = math.sin(phi)
    first_share = math.sin((1 - t) * phi) / sine
    second_share = math.sin(t * phi) / sine
    return first * first_share + second * second_share
