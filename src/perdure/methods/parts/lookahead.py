"""A gradient computed after a trial step, as in first-order meta-learning."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn


def add_gradient_ahead(
    parameters: Sequence[nn.Parameter], rate: float, losses: Sequence[Callable[[], Tensor]]
) -> None:
    """Add the gradient of the sum of `losses` at θ − rate · g to the gradient g.

    Afterwards, the parameters θ have the same values as before, and `grad` of each is the
    sum of both gradients.

    Parameters
    ----------
    parameters
        The parameters θ, whose `grad` is g. Those without a gradient do not move.
    losses
        Functions that compute a loss from the current parameters.
    """
    gradients = [parameter.grad for parameter in parameters]
    values = [parameter.detach().clone() for parameter in parameters]
    with torch.no_grad():
        for parameter, gradient in zip(parameters, gradients, strict=True):
            if gradient is not None:
                parameter -= rate * gradient
            parameter.grad = None
    # One backward pass for each loss, so that only one graph is in memory at a time.
    for loss in losses:
        loss().backward()
    with torch.no_grad():
        for parameter, gradient, value in zip(parameters, gradients, values, strict=True):
            parameter.copy_(value)
            if gradient is None:
                continue
            if parameter.grad is None:
                parameter.grad = gradient
            else:
                parameter.grad += gradient
