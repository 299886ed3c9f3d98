"""Per-example gradients, computed one batch at a time.

The square of a batch's gradient is not the sum of the squares of its examples' gradients,
so per-example gradients are needed. In a linear layer y = W x, the gradient of an example
is the sum over its tokens of dL/dy xᵀ, so a single pass over a batch that records x and
dL/dy yields the gradients of all examples. A module with other kinds of layers is
processed one example at a time. (`torch.func.vmap` of a gradient works for any layer, but
is slower with peft's modules.)
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
"""A function that computes terms from the model's answers. Each term has one value per example, and
is differentiated separately.
"""
Function = Callable[[Tensor], Tensor]

BATCH_SIZE = 64
"""The number of examples in a pass. All their gradients are in memory, for one layer at a time."""

PROMPTS = 16
"""The number of examples in a pass of a language model.

The activations of all tokens are in memory: with 64 prompts of 96 tokens, a pass of
SmolLM2-135M took 13 GB.
"""


def pass_size(backbone: Backbone) -> int:
    """Return the number of examples whose gradients are computed in one pass."""
    return BATCH_SIZE if backbone.has_heads else PROMPTS


def mean_over_examples(
    backbone: Backbone, examples: Examples, terms: Terms, function: Function
) -> dict[str, Tensor]:
    """Return the mean over examples of Σ over terms of f(∂ term / ∂θ), for each parameter θ.

    The keys are the names of the module's parameters. The results are on the CPU.

    Parameters
    ----------
    terms
        A function that computes the terms to differentiate from the answers of a batch,
        where each example is answered by the head of its task.
    function
        The elementwise function f, such as `torch.square`.
    """
    backbone.eval()
    parameters = adapters.trainable(backbone.model)
    layers = adapters.linears(backbone.model)
    for parameter in parameters.values():
        parameter.requires_grad_()
    total = {name: torch.zeros_like(value) for name, value in parameters.items()}

    # One example is enough: a model that uses a layer twice does so for every example.
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
    for _, batch in examples.batches(size=pass_size(backbone), device=backbone.device):
        with caught(layers, total, function, batch):
            hidden = backbone(batch)
            answers = backbone.read(hidden, batch)
            for term in terms(answers):
                # The gradient of the sum is discarded. On its way to the weights it
                # passes through the layers' outputs, where it is still separate for each
                # example.
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
    """Return True if the parameters are exactly the parameters of the given layers."""
    names = set()
    for name, layer in layers.items():
        names |= {f"{name}.{key}" for key, _ in layer.named_parameters(recurse=False)}
    return parameters.keys() == names


@torch.no_grad()
def _used_once(backbone: Backbone, layers: list[nn.Linear], batch: Batch) -> bool:
    """Return True if a forward pass uses no layer more than once.

    Models with shared layers use a layer several times. Per-example gradients are then
    sums over all uses, but a hook sees only one use at a time.
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
    """Add `function(gradient)` of each example to `total` in every backward pass inside the block.

    The differentiated value must be a sum over the examples of the batch, and each layer
    must be used only once in a forward pass.

    Parameters
    ----------
    total
        The sums so far, by parameter name.
    batch
        The batch that the model processes inside the block, with one example per row.
    """

    def catch(name: str, layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        # A forward hook sees x, and a hook on the output sees dL/dy in the backward pass.
        x = apart(inputs[0].detach(), batch)

        def add(gradient: Tensor) -> None:
            d = apart(gradient, batch)
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


def apart(
    values: Float[Tensor, "*places width"], batch: Batch
) -> Float[Tensor, "batch tokens width"]:
    """Return a layer's inputs or outputs by example, padding shorter examples with zeros."""
    examples = len(batch)
    if batch.places is not None and len(values) == 1 < examples:
        # The output layer of a language model gets the tokens of all answers as one row.
        counts = batch.places.examples.bincount(minlength=examples).tolist()
        return pad_sequence(list(values[0].split(counts)), batch_first=True)
    # A vision transformer may split an image into windows along the first dimension. They
    # are joined here, so that the first dimension counts examples.
    return values.reshape(examples, -1, values.shape[-1])
