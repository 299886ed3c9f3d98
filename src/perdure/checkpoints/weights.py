"""The location of a layer's weight in the base."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Weight:
    """The location of a weight in the base: a tensor, or one matrix of a stacked tensor.

    Attributes
    ----------
    tensor
        The tensor's name in the base.
    transposed
        True if it is stored as in × out, as in a `Conv1D`.
    index
        The index of the matrix in a 3D tensor; None if the tensor is a single matrix.
    """

    tensor: str
    transposed: bool = False
    index: int | None = None
