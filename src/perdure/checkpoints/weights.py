"""Where the weight of a layer lies in the base."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Weight:
    """A tensor of the base, or one matrix of a stack.

    Attributes
    ----------
    tensor
        Its name in the base.
    transposed
        Whether it is stored as in × out, as those of a `Conv1D` are.
    index
        Which matrix of a tensor with three dimensions; None: the tensor is one matrix.
    """

    tensor: str
    transposed: bool = False
    index: int | None = None
