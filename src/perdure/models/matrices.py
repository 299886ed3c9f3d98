"""Layers that multiply by a matrix: `nn.Linear` and GPT-2's `Conv1D`.

`Conv1D` stores its weight transposed. Throughout perdure, a change to a weight is out ×
in for both kinds of layer.
"""

from typing import TypeAlias, TypeGuard

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from perdure.models import quantised

MatrixLayer: TypeAlias = nn.Linear | Conv1D


def is_transposed(layer: nn.Module) -> bool:
    """Return whether a layer stores its weight as in × out."""
    return isinstance(layer, Conv1D)


def is_matrix(layer: nn.Module) -> TypeGuard[MatrixLayer]:
    """Return whether a layer multiplies by a matrix."""
    return isinstance(layer, nn.Linear | Conv1D)


def oriented(layer: nn.Module, value: Tensor) -> Tensor:
    """Convert a weight, or a change to it, between out × in and the layout of the layer.

    The result is a view.
    """
    return value.T if is_transposed(layer) else value


def matrix(layer: nn.Module) -> Tensor:
    """Return the weight of a layer as a writable view, with a matrix as out × in.

    For a 4-bit weight, the result is an empty tensor of that shape on the meta device.

    Examples
    --------
    >>> matrix(Conv1D(3, 2)).shape, matrix(nn.Linear(2, 3)).shape
    (torch.Size([3, 2]), torch.Size([3, 2]))
    """
    weight = layer.weight
    assert isinstance(weight, Tensor)
    if isinstance(layer, nn.Linear) and quantised.in_4_bits(weight):
        # 4-bit values are stored in one column, so only the shape of the matrix is known.
        return torch.empty(layer.out_features, layer.in_features, device="meta")
    return oriented(layer, weight)
