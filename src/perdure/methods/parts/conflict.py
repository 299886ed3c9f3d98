"""Conflicts between the gradients of two losses."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def opposing(
    one: Float[Tensor, "..."], other: Float[Tensor, "..."], hidden: Float[Tensor, "rows width"]
) -> Bool[Tensor, " rows"]:
    """Return True for each row of `hidden` where the gradients of two losses oppose.

    Two gradients oppose if their inner product is negative. Both losses are summed, and
    differentiated with respect to `hidden` only. This needs no backward pass through the
    layers that computed `hidden`, and leaves the gradients of parameters unchanged.

    Examples
    --------
    >>> hidden = torch.tensor([[1.0, 0.0], [1.0, 2.0]], requires_grad=True)
    >>> opposing(hidden[:, 0], hidden[:, 0] - hidden[:, 1] ** 2 * hidden[:, 0], hidden).tolist()
    [False, True]
    """
    (first,) = torch.autograd.grad(one.sum(), hidden, retain_graph=True)
    (second,) = torch.autograd.grad(other.sum(), hidden, retain_graph=True)
    return (first * second).sum(1) < 0
