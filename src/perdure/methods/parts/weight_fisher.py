"""The diagonal of the Fisher information of the weights to which LoRA adds a product.

EWC measures the importance of LoRA's factors. This file measures that of ΔW itself, as if
all entries of the weight were trained. In y = (W + ΔW) x, the gradient of an example with
respect to ΔW is the sum over its tokens of dL/dy xᵀ, so one pass over a batch that records
x and dL/dy yields the gradients of all examples.
"""

import contextlib
import functools
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from perdure.methods.parts.fisher import Labels, log_likelihoods
from perdure.methods.parts.per_example import apart, pass_size
from perdure.models import adapters
from perdure.models.backbone import Backbone
from perdure.models.examples import Batch, Examples


@dataclass(eq=False)
class Use:
    """One use of a layer in a forward pass: its input, and the gradient of its output."""

    x: Tensor
    gradient: Tensor | None = None


Uses = dict[str, list[Use]]
"""The uses of each layer; a model with shared layers uses a layer several times."""


def weight_fisher(
    backbone: Backbone, examples: Examples, labels: Labels
) -> dict[str, Float[Tensor, "out in"]]:
    """Return F = E_x E_y [∂ log p(y | x) / ∂ΔW]² for each layer with LoRA, by its name.

    log p of an example is the mean over the places of its answer, and p(y | x) comes from
    the head of the example's task. The squares are those of single examples. Only one
    matrix of the size of ΔW is in memory beside the sums. The result is on the CPU.

    Parameters
    ----------
    labels
        The labels y over which to take the expectation. `sampled` uses torch's random state.
    """
    backbone.eval()
    factors = adapters.factors(backbone.model)
    totals: dict[str, Tensor] = {}
    for name, (A, B) in factors.items():
        # If B had no gradient, none would reach the output of its layer.
        B.requires_grad_()
        totals[name] = A.new_zeros(B.shape[0], A.shape[1], requires_grad=False)
    layers = {name: backbone.model.get_submodule(name) for name in factors}
    ends = [B for _, B in factors.values()]
    for _, batch in examples.batches(size=pass_size(backbone), device=backbone.device):
        with recorded(layers) as uses:
            hidden = backbone(batch)
            answers = backbone.read(hidden, batch)
        for term in log_likelihoods(answers, labels):
            torch.autograd.grad(term.sum(), ends, retain_graph=True, allow_unused=True)
            for name, total in totals.items():
                _add_squares(total, uses[name], batch)
    # In place, because copies of all sums would double the memory.
    for total in totals.values():
        total /= len(examples)
    return {name: total.cpu() for name, total in totals.items()}


@contextlib.contextmanager
def recorded(layers: dict[str, nn.Module]) -> Iterator[Uses]:
    """Record each use of the layers in the forward passes inside the block.

    A later backward pass fills in the gradients.
    """
    uses: Uses = {name: [] for name in layers}

    def record(name: str, layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        use = Use(inputs[0].detach())
        uses[name].append(use)

        def keep(gradient: Tensor) -> None:
            use.gradient = gradient

        output.register_hook(keep)

    handles = []
    for name, layer in layers.items():
        hook = functools.partial(record, name)
        handles.append(layer.register_forward_hook(hook))
    try:
        yield uses
    finally:
        for handle in handles:
            handle.remove()


def _add_squares(total: Float[Tensor, "out in"], uses: list[Use], batch: Batch) -> None:
    """Add the squared gradients of the examples of a batch to `total`, and drop the gradients."""
    inputs = []
    gradients = []
    for use in uses:
        if use.gradient is None:  # the answers do not depend on this use
            continue
        inputs.append(apart(use.x, batch).to(total))
        gradients.append(apart(use.gradient, batch).to(total))
        use.gradient = None
    if not inputs:
        return
    # The gradient of an example is a sum over tokens and uses: more uses are more tokens.
    all_inputs = torch.cat(inputs, dim=1)
    all_gradients = torch.cat(gradients, dim=1)
    # One example at a time: a matrix for each example of the batch would not fit into memory.
    for x, d in zip(all_inputs, all_gradients, strict=True):
        of_example = d.T @ x
        total.addcmul_(of_example, of_example)
