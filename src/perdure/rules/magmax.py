"""MagMax (Marczak et al. 2024): keep the largest change to each entry."""

import functools

import torch

from perdure.merging.rule import nature
from perdure.rules.parts import sparse
from perdure.vectors.task_vector import TaskVector


@nature("order-free", state="one task vector", layerwise=True)
def magmax(vectors: dict[str, TaskVector], *, scale: float = 0.5) -> TaskVector:
    """Keep the largest change to each entry: Theta = Theta_pre + scale · tau.

    Entry i of tau is the (tau_t)_i with the largest magnitude among the task vectors
    tau_t. MagMax was published for models that are fine-tuned one after another, each
    starting from the previous one (the method `sequential`, or `isolated` with
    `start="previous"`). With models trained separately, it is a baseline that did worse
    in the paper. The task order matters only if magnitudes are equal, in which case the
    later task wins.

    Parameters
    ----------
    scale
        The paper's lambda. The authors' scripts use 0.5.

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

    def larger(old: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
        # Not `>`: if magnitudes are equal, the later task wins.
        is_larger = new.abs() >= old.abs()
        return torch.where(is_larger, new, old)

    def merge(name: str, layer: sparse.Layer) -> torch.Tensor:
        merged = functools.reduce(larger, layer.values())
        return scale * merged

    return sparse.each_layer(vectors, merge)
