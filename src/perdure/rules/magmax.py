"""MagMax (Marczak et al. 2024): take the largest change of each entry."""

import functools

import torch

from perdure.merging.rule import nature
from perdure.rules.parts import sparse
from perdure.vectors.task_vector import TaskVector


@nature("order-free", state="one task vector", layerwise=True)
def magmax(vectors: dict[str, TaskVector], *, scale: float = 0.5) -> TaskVector:
    """Theta = Theta_pre + scale · tau, with tau_i = the (tau_t)_i of largest magnitude.

    It was published for models fine-tuned one after the other, each from the last (the method
    `sequential`, or `isolated` with `start="previous"`); on models trained apart it is the authors'
    weaker baseline. The order matters only for equal magnitudes: then the later task wins.

    Parameters
    ----------
    scale
        lambda, 0.5 in the authors' scripts.

    Examples
    --------
    >>> a = TaskVector({"w": torch.tensor([1.0, -4.0])})
    >>> b = TaskVector({"w": torch.tensor([3.0, 2.0])})
    >>> magmax({"a": a, "b": b}, scale=1.0).dense("w").tolist()
    [3.0, -4.0]

    References
    ----------
    Marczak et al., MagMax, arXiv 2407.06322.
    """

    def greater(old: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
        # Not `>`: of equal magnitudes the later task wins.
        is_greater = new.abs() >= old.abs()
        return torch.where(is_greater, new, old)

    def merge(name: str, layer: sparse.Layer) -> torch.Tensor:
        merged = functools.reduce(greater, layer.values())
        return scale * merged

    return sparse.each_layer(vectors, merge)
