"""Layers that multiply by a matrix: linear ones, and GPT-2's `Conv1D`.

`Conv1D` stores its weight transposed. A change of a layer is out × in throughout perdure, whichever
of the two the layer is.
"""

from typing import TypeAlias, TypeGuard

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from perdure.models import quantised

MatrixLayer: TypeAlias = nn.Linear | Conv1D


def is_transposed(layer: nn.Module) -> bool:
    """Return whether a layer's weight is stored as in × out."""
    return isinstance(layer, Conv1D)


def is_matrix(layer: nn.Module) -> TypeGuard[MatrixLayer]:
    """Return whether a layer multiplies by a matrix."""
    return isinstance(layer, nn.Linear | Conv1D)


def oriented(layer: nn.Module, value: Tensor) -> Tensor:
    """Turn a weight of a layer, or its change, from out × in to the layer's own order, or back.

    The result is a view.
    """
    return value.T if is_transposed(layer) else value


def matrix(layer: nn.Module) -> Tensor:
    """Return the weight of a layer, out × in if it is a matrix: a view that may be written to.

    For a weight in 4 bits only the shape is returned, on the meta device.

    Examples
    --------
    >>> matrix(Conv1D(3, 2)).shape, matrix(nn.Linear(2, 3)).shape
    (torch.Size([3, 2]), torch.Size([3, 2]))
    """
    weight = layer.weight
    assert isinstance(weight, Tensor)
    if isinstance(layer, nn.Linear) and quantised.in_4_bits(weight):
        # In 4 bits the values lie in one column: what remains of the matrix is its shape.
        return torch.empty(layer.out_features, layer.in_features, device="meta")
    return oriented(layer, weight)
