"""The diagonal of the Fisher information of an adapter, from gradients of each example by itself, a batch at a time.

In a linear layer y = W x the gradient of one example is the sum over its tokens of dL/dy xᵀ. So one pass over a batch,
in which x and dL/dy are caught, gives them all; squaring the gradient of a batch would not.
"""

import contextlib
import functools
from collections.abc import Iterator
from typing import Any, Literal

import torch
from torch import Tensor, nn

from perdure import adapters
from perdure.backbone import Backbone, Encoded

Labels = Literal["true", "sampled", "empirical"]
"""Which labels the gradients are of: all, weighted by p(y | x); one drawn from p(y | x); or the right one."""


def fisher(backbone: Backbone, examples: Encoded, task: str, labels: Labels) -> dict[str, Tensor]:
    """F = E_x E_y [∂ log p(y | x) / ∂θ]² for each parameter of the adapter, by its name; on the CPU.

    Parameters
    ----------
    task
        Whose head gives p(y | x).
    labels
        Where y is from. `sampled` follows torch's random state.

    References
    ----------
    Kirkpatrick et al., Overcoming catastrophic forgetting in neural networks, arXiv 1612.00796; the kinds of Fisher:
    Kunstner et al., arXiv 1905.12558.
    """
    backbone.eval()
    total: dict[str, Tensor] = {}
    layers = adapters.linears(backbone.model)
    reached = [layer.weight.requires_grad_() for layer in layers.values()]
    with squared_gradients(layers, total):
        for _, batch in examples.batches():
            log_p = backbone.head(task)(backbone(batch["inputs"])).log_softmax(1)
            for value in _terms(log_p, batch["labels"], labels):
                torch.autograd.grad(value, reached, retain_graph=True)
    return {name: (value / len(examples)).cpu() for name, value in total.items()}


def _terms(log_p: Tensor, right: Tensor, labels: Labels) -> Iterator[Tensor]:
    """What is differentiated: one sum over the batch for each label, each example weighted by √p(y | x) for `true`."""
    if labels == "true":
        for column in log_p.unbind(1):
            yield (column.detach().exp().sqrt() * column).sum()
        return
    chosen = right if labels == "empirical" else torch.multinomial(log_p.detach().exp(), 1)[:, 0]
    yield log_p.gather(1, chosen[:, None]).sum()


@contextlib.contextmanager
def squared_gradients(layers: dict[str, nn.Linear], total: dict[str, Tensor]) -> Iterator[None]:
    """Add to `total` the squared gradients of each example, of the layers' parameters, while the block runs.

    What is differentiated has to be a sum over the examples of a batch, and each layer used once in a pass.
    """

    def catch(name: str, layer: nn.Module, inputs: tuple[Tensor, ...], output: Any) -> None:
        x = inputs[0].detach().flatten(1, -2) if inputs[0].dim() > 2 else inputs[0].detach()[:, None]

        def add(gradient: Tensor) -> None:
            d = gradient.reshape(*x.shape[:2], -1)
            parts = {"weight": torch.einsum("bto,bti->boi", d, x)}
            if layer.bias is not None:
                parts["bias"] = d.sum(1)
            for key, value in parts.items():
                square = value.square().sum(0)
                total[f"{name}.{key}"] = total[f"{name}.{key}"] + square if f"{name}.{key}" in total else square

        output.register_hook(add)

    hooks = [layer.register_forward_hook(functools.partial(catch, name)) for name, layer in layers.items()]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
