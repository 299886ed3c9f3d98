"""The location of a layer's weight in the base model."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Weight:
    """The location of a weight in the base model: a tensor, or one matrix of a stacked tensor.

    Attributes
    ----------
    tensor
        The name of the tensor in the base model.
    transposed
        True if the weight is stored as in × out, as in a `Conv1D`.
    index
        The index of the matrix in a 3D tensor, or None if the tensor is a single matrix.
    """

    tensor: str
    transposed: bool = False
    index: int | None = None
