"""What the rules that work entry by entry share: one layer at a time, trimming, dropping, and agreement of signs."""

import hashlib
from collections.abc import Callable, Mapping, Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from perdure.errors import InputError
from perdure.task_vector import Deferred, TaskVector

Layer = dict[str, Tensor]
"""The full change of one layer, by task."""


def shapes(vectors: Mapping[str, TaskVector]) -> dict[str, torch.Size]:
    """The shape of every layer that any of the task vectors changes, in their own order."""
    return {name: value.shape for vector in vectors.values() for name, value in vector.items()}


def layer_of(vectors: Mapping[str, TaskVector], name: str, shape: torch.Size) -> Layer:
    """The full change of one layer by each task; zeros where a task does not change it."""
    return {task: v.dense(name) if name in v else torch.zeros(shape) for task, v in vectors.items()}


def each_layer(vectors: Mapping[str, TaskVector], merge: Callable[[str, Layer], Tensor]) -> TaskVector:
    """`merge(name, changes by task)` of each layer, made when it is wanted: one full matrix per task at a time."""

    def deferred(name: str, shape: torch.Size) -> Deferred:
        return Deferred(shape, lambda: merge(name, layer_of(vectors, name, shape)))

    return TaskVector({name: deferred(name, shape) for name, shape in shapes(vectors).items()})


def share(name: str, value: float, *, least: float = 0.0) -> float:
    """A setting that must be a share.

    Raises
    ------
    InputError
        It is not above `least` and at most 1.
    """
    if not least < value <= 1:
        raise InputError(f"`{name}` must be above {least:g} and at most 1, got `{value}`.")
    return value


def generator(seed: int, *about: str) -> torch.Generator:
    """Random numbers that depend on the seed and on what they are for, not on what was drawn before."""
    digest = hashlib.sha256("\0".join([str(seed), *about]).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7]))


def elected(changes: Sequence[Float[Tensor, "*shape"]]) -> Float[Tensor, "*shape"]:
    """The sign of each entry: that of the sum over tasks; where it is zero, that of most other entries."""
    signs = torch.stack(list(changes)).sum(0).sign()
    return torch.where(signs == 0, signs.sum().sign(), signs)


def agreeing(
    changes: Sequence[Float[Tensor, "*shape"]], signs: Float[Tensor, "*shape"]
) -> Bool[Tensor, "tasks *shape"]:
    """Where each task's entry is not zero and has the elected sign."""
    return torch.stack(list(changes)).sign() == torch.where(signs == 0, torch.nan, signs)
