"""Gradients of each example by itself, a batch at a time: the square of a batch's gradient is something else.

In a linear layer y = W x the gradient of one example is the sum over its tokens of dL/dy xᵀ. So one pass over a batch,
in which x and dL/dy are caught, gives them all. What has other layers than linear ones is read one example at a time.
"""

import contextlib
import functools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from perdure.models import adapters
from perdure.models.backbone import Backbone
from perdure.models.examples import Batch, Examples
from perdure.models.logits import Logits

Terms = Callable[[Logits], Iterable[Float[Tensor, " batch"]]]
"""From answers to what is differentiated: one value for each example; several are differentiated in turn."""
Function = Callable[[Tensor], Tensor]


def mean_over_examples(
    backbone: Backbone, examples: Examples, terms: Terms, function: Function
) -> dict[str, Tensor]:
    """The mean over examples of the sum over terms of f(∂ term / ∂θ), for each parameter θ of the module; on the CPU.

    Parameters
    ----------
    terms
        What is differentiated, of the answers of each example's own head.
    function
        f, for each entry, such as `torch.square`.
    """
    backbone.eval()
    parameters, layers = adapters.trainable(backbone.model), adapters.linears(backbone.model)
    for parameter in parameters.values():
        parameter.requires_grad_()
    total = {name: torch.zeros_like(value) for name, value in parameters.items()}
    linear = parameters.keys() == {
        f"{name}.{key}" for name, layer in layers.items() for key, _ in _own(layer)
    }
    by_batch = linear and _used_once(
        backbone, list(layers.values()), examples.batch([0], backbone.device)
    )
    for _, batch in examples.batches(size=64 if by_batch else 1, device=backbone.device):
        with caught(layers, total, function, len(batch)) if by_batch else contextlib.nullcontext():
            for term in terms(backbone.read(backbone(batch), batch)):
                wanted = (
                    [layer.weight for layer in layers.values()]
                    if by_batch
                    else list(parameters.values())
                )
                found = torch.autograd.grad(
                    term.sum(), wanted, retain_graph=True, allow_unused=True
                )
                if not by_batch:
                    for value, gradient in zip(total.values(), found, strict=True):
                        value += 0.0 if gradient is None else function(gradient)
    return {name: (value / len(examples)).cpu() for name, value in total.items()}


def _own(layer: nn.Module) -> list[tuple[str, nn.Parameter]]:
    return list(layer.named_parameters(recurse=False))


@torch.no_grad()
def _used_once(backbone: Backbone, layers: list[nn.Linear], batch: Batch) -> bool:
    """Whether a pass uses no layer twice, as models do that share layers: f is of the sum of what each use gives."""
    uses: list[nn.Module] = []
    hooks = [
        layer.register_forward_hook(lambda layer, inputs, output: uses.append(layer))
        for layer in layers
    ]
    backbone(batch)
    for hook in hooks:
        hook.remove()
    return len(uses) == len({id(layer) for layer in uses})


@contextlib.contextmanager
def caught(
    layers: dict[str, nn.Linear], total: dict[str, Tensor], function: Function, examples: int
) -> Iterator[None]:
    """Add to `total` f of the gradients of each of so many examples, of the layers' parameters, while the block runs.

    What is differentiated has to be a sum over the examples of a batch, and each layer used once in a pass.
    """

    def catch(name: str, layer: nn.Module, inputs: tuple[Tensor, ...], output: Any) -> None:
        x = inputs[0].detach()
        x = x.reshape(
            examples, -1, x.shape[-1]
        )  # an image may be cut into windows, one after the other

        def add(gradient: Tensor) -> None:
            d = gradient.reshape(*x.shape[:2], -1)
            total[f"{name}.weight"] += function(torch.einsum("bto,bti->boi", d, x)).sum(0)
            if layer.bias is not None:
                total[f"{name}.bias"] += function(d.sum(1)).sum(0)

        output.register_hook(add)

    hooks = [
        layer.register_forward_hook(functools.partial(catch, name))
        for name, layer in layers.items()
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
