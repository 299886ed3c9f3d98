"""Per-example gradients, computed a batch at a time.

The square of a batch's gradient is not the sum of the squares of its examples' gradients, so
per-example gradients are needed. In a linear layer y = W x an example's gradient is the sum over
its tokens of dL/dy xᵀ: a single pass over a batch that records x and dL/dy yields them all. A
module with layers other than linear ones is processed one example at a time. (`torch.func.vmap` of
a gradient does the same for any layer, but is slower with peft's modules.)
"""

import contextlib
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from perdure.models import adapters
from perdure.models.backbone import Backbone
from perdure.models.examples import Batch, Examples
from perdure.models.logits import Logits

Terms = Callable[[Logits], Iterable[Float[Tensor, " batch"]]]
"""A function from answers to the terms that are differentiated in turn, each with one value per
example.
"""
Function = Callable[[Tensor], Tensor]

BATCH_SIZE = 64
"""The number of examples in a pass; for one layer at a time, all their gradients are in memory."""


def mean_over_examples(
    backbone: Backbone, examples: Examples, terms: Terms, function: Function
) -> dict[str, Tensor]:
    """Return the mean over examples of Σ over terms of f(∂ term / ∂θ), for each parameter θ.

    The parameters are the module's, by name. The result is on the CPU.

    Parameters
    ----------
    terms
        The terms to differentiate, from the answers of each example's own head.
    function
        f, for each entry, such as `torch.square`.
    """
    backbone.eval()
    parameters = adapters.trainable(backbone.model)
    layers = adapters.linears(backbone.model)
    for parameter in parameters.values():
        parameter.requires_grad_()
    total = {name: torch.zeros_like(value) for name, value in parameters.items()}

    # One example tells: a model that uses a layer twice does so for each of them.
    by_batch = _all_linear(parameters, layers)
    if by_batch:
        first = examples.batch([0], backbone.device)
        by_batch = _used_once(
            backbone,
            list(layers.values()),
            first,
        )
    if by_batch:
        _add_by_batch(backbone, examples, terms, function, total)
    else:
        _add_one_by_one(backbone, examples, terms, function, total)
    means = {}
    for name, value in total.items():
        mean = value / len(examples)
        means[name] = mean.cpu()
    return means


def _add_by_batch(
    backbone: Backbone,
    examples: Examples,
    terms: Terms,
    function: Function,
    total: dict[str, Tensor],
) -> None:
    layers = adapters.linears(backbone.model)
    weights = [layer.weight for layer in layers.values()]
    batches = examples.batches(
        size=BATCH_SIZE,
        device=backbone.device,
    )
    for _, batch in batches:
        with caught(layers, total, function, batch):
            hidden = backbone(batch)
            answers = backbone.read(hidden, batch)
            for term in terms(answers):
                # The gradient of the sum is thrown away: on its way to the weights it passes the
                # layers' outputs, where it is still that of each example.
                torch.autograd.grad(
                    term.sum(),
                    weights,
                    retain_graph=True,
                    allow_unused=True,
                )


def _add_one_by_one(
    backbone: Backbone,
    examples: Examples,
    terms: Terms,
    function: Function,
    total: dict[str, Tensor],
) -> None:
    parameters = list(adapters.trainable(backbone.model).values())
    for _, batch in examples.batches(size=1, device=backbone.device):
        hidden = backbone(batch)
        answers = backbone.read(hidden, batch)
        for term in terms(answers):
            gradients = torch.autograd.grad(
                term.sum(),
                parameters,
                retain_graph=True,
                allow_unused=True,
            )
            for value, gradient in zip(total.values(), gradients, strict=True):
                if gradient is not None:
                    value += function(gradient)


def _all_linear(parameters: Mapping[str, Tensor], layers: Mapping[str, nn.Linear]) -> bool:
    """Return whether all parameters belong to these layers."""
    names = set()
    for name, layer in layers.items():
        names |= {f"{name}.{key}" for key, _ in layer.named_parameters(recurse=False)}
    return parameters.keys() == names


@torch.no_grad()
def _used_once(backbone: Backbone, layers: list[nn.Linear], batch: Batch) -> bool:
    """Return whether a pass uses no layer twice.

    Models that share layers do. f is a function of the sum of the gradients of all uses, and
    the hooks see each use alone.
    """
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
    layers: dict[str, nn.Linear], total: dict[str, Tensor], function: Function, batch: Batch
) -> Iterator[None]:
    """Add f of each example's gradients to `total` while the block runs.

    The differentiated value must be a sum over the examples of a batch, and each layer must
    be used once in a pass.

    Parameters
    ----------
    total
        The sums by the names of the layers' parameters.
    batch
        The examples, each in a row of its own.
    """

    def catch(name: str, layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        # A forward hook sees x, and a hook on the output sees dL/dy in the backward pass.
        x = _apart(inputs[0].detach(), batch)

        def add(gradient: Tensor) -> None:
            d = _apart(gradient, batch)
            # b: example, t: token, o: output, i: input
            of_weight = torch.einsum("bto,bti->boi", d, x)
            weight = f"{name}.weight"
            total[weight] += function(of_weight).sum(0)
            if layer.bias is not None:
                of_bias = d.sum(1)
                bias = f"{name}.bias"
                total[bias] += function(of_bias).sum(0)

        output.register_hook(add)

    hooks = []
    for name, layer in layers.items():
        hook = functools.partial(catch, name)
        hooks.append(layer.register_forward_hook(hook))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _apart(
    values: Float[Tensor, "*places width"], batch: Batch
) -> Float[Tensor, "batch tokens width"]:
    """Return what a layer reads or writes, by example; zeros fill up the shorter ones."""
    examples = len(batch)
    if batch.places is not None and len(values) == 1 < examples:
        # A language model's output layer reads the tokens of all answers as one row.
        counts = batch.places.examples.bincount(minlength=examples).tolist()
        return pad_sequence(list(values[0].split(counts)), batch_first=True)
    # A vision transformer may cut an image into windows, one after the other in the first
    # dimension: they are joined again, so that the first dimension counts examples.
    return values.reshape(examples, -1, values.shape[-1])
