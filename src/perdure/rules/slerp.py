"""Spherical interpolation of two task vectors."""

import math
from typing import Annotated, Literal

from annotated_types import Ge, Le

from perdure.errors import InputError
from perdure.merging.rule import nature
from perdure.vectors.task_vector import TaskVector, shapes

Per = Literal["layer", "model"]


@nature("sequential", state="two task vectors, and no more tasks than two", most=2)
def slerp(
    vectors: dict[str, TaskVector], *, t: Annotated[float, Ge(0), Le(1)] = 0.5, per: Per = "layer"
) -> TaskVector:
    """Theta = Theta_pre + (sin((1 - t) phi) tau_1 + sin(t phi) tau_2) / sin(phi), with phi the angle of the two.

    Where they are nearly parallel (|cos phi| > 0.9995), or one is zero, (1 - t) tau_1 + t tau_2. At t = 1/2 the order
    does not matter. A single task vector stays as it is.

    Parameters
    ----------
    t
        How far from the first to the second, in [0, 1].
    per
        One angle for each `layer`, or one for the whole `model`.

    Examples
    --------
    >>> import torch
    >>> both = {"a": TaskVector({"w": torch.tensor([1.0, 0])}), "b": TaskVector({"w": torch.tensor([0, 1.0])})}
    >>> [round(x, 4) for x in slerp(both)["w"].tolist()]
    [0.7071, 0.7071]

    References
    ----------
    Shoemake, Animating Rotation with Quaternion Curves, SIGGRAPH 1985. mergekit interpolates the models' weights, each
    tensor with its angle; we the task vectors.
    """
    if len(vectors) > 2:
        raise InputError(
            f"`slerp` interpolates two task vectors, got {len(vectors)}: {', '.join(vectors)}."
        )
    if len(vectors) == 1:
        return next(iter(vectors.values()))
    one, two = vectors.values()
    names = shapes(vectors)
    if per == "model":
        return _between(one, two, t)
    layers = [[TaskVector({k: v[k]} if k in v else {}) for v in (one, two)] for k in names]
    return TaskVector({name: value for a, b in layers for name, value in _between(a, b, t).items()})


def _between(one: TaskVector, two: TaskVector, t: float) -> TaskVector:
    cosine = one.cosine(two)
    if abs(cosine) > 0.9995 or not one.norm() * two.norm():
        return one * (1 - t) + two * t
    phi = math.acos(cosine)
    return one * (math.sin((1 - t) * phi) / math.sin(phi)) + two * (
        math.sin(t * phi) / math.sin(phi)
    )
