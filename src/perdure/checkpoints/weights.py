"""The position of a layer's weight in the base."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Weight:
    """A tensor of the base, or one matrix of a stack.

    Attributes
    ----------
    tensor
        The name of the tensor in the base.
    transposed
        Whether it is stored as in × out, as in a `Conv1D`.
    index
        The matrix in a tensor with three dimensions; None: the tensor is one matrix.
    """

    tensor: str
    transposed: bool = False
    index: int | None = None
