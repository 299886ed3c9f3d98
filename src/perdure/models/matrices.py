"""Layers that multiply by a matrix: linear ones, and GPT-2's `Conv1D`, which keeps its weight transposed.

A change of a layer is always out × in here, whichever of the two the layer is.
"""

from typing import Any, TypeGuard

from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D


def is_transposed(layer: nn.Module) -> bool:
    """Whether a layer's weight is stored as in × out."""
    return isinstance(layer, Conv1D)


def is_matrix(layer: nn.Module) -> TypeGuard[nn.Linear | Conv1D]:
    """Whether a layer multiplies by a matrix."""
    return isinstance(layer, nn.Linear | Conv1D)


def oriented(layer: nn.Module, value: Tensor) -> Tensor:
    """A layer's weight, or a change of it, turned from out × in to the layer's own order, or back: a view."""
    return value.T if is_transposed(layer) else value


def matrix(layer: Any) -> Tensor:
    """The weight of a layer, out × in where it is a matrix: a view, which may be written to.

    Examples
    --------
    >>> matrix(Conv1D(3, 2)).shape, matrix(nn.Linear(2, 3)).shape
    (torch.Size([3, 2]), torch.Size([3, 2]))
    """
    return oriented(layer, layer.weight)
