"""The hidden states of a transformer's layers, averaged to one vector per example."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from perdure.errors import BackboneError
from perdure.models.backbone import Backbone, evaluating
from perdure.models.examples import Batch, Examples, in_order
from perdure.models.network import Network


@torch.no_grad()
def hidden_states(backbone: Backbone, examples: Examples) -> list[Float[Tensor, "examples _"]]:
    """Return the mean hidden state of each example after the embeddings and after each layer.

    The mean is over tokens, without padding, or over image patches. The backbone is used
    with the adapters that are currently attached. The tensors are on the CPU; their
    widths may differ.

    Raises
    ------
    BackboneError
        The model does not return its hidden states.
    """
    # Batches group examples of similar length; the row numbers are needed to undo the sorting.
    row_numbers: list[list[int]] = []
    means: list[list[Tensor]] = []
    with evaluating(backbone):
        for rows, batch in examples.batches(device=backbone.device):
            states = _states(backbone, batch)
            mask = None
            if backbone.kind == "text":
                mask = batch.inputs.get("attention_mask")
            row_numbers.append(rows)
            means.append([_mean(state, mask).cpu() for state in states])
    layers = []
    # From a list of layers for each batch to a list of batches for each layer.
    for batches in zip(*means, strict=True):
        numbered = zip(row_numbers, batches, strict=True)
        layers.append(in_order(numbered))
    return layers


def _states(backbone: Backbone, batch: Batch) -> Sequence[Tensor]:
    if isinstance(backbone, Network):
        states = backbone.model.states(**batch.inputs)
        # The output of a linear layer is a vector, which counts as a single token.
        return [state[:, None] if state.dim() == 2 else state for state in states]
    output = backbone.model(**batch.inputs, output_hidden_states=True)
    # Some architectures accept `output_hidden_states` and still return None.
    if output.hidden_states is None:
        name = type(backbone.model).__name__
        raise BackboneError(f"`{name}` does not return the hidden states of its layers.")
    return output.hidden_states


def _mean(state: Tensor, mask: Tensor | None) -> Float[Tensor, "examples width"]:
    if state.dim() == 4:  # convolutional: batch, channels, height, width
        return state.flatten(2).mean(2)
    # An image has no padding, so all of its tokens count.
    weights = torch.ones_like(state[..., :1])
    if mask is not None:
        weights = mask[..., None].to(state.dtype)
    return (state * weights).sum(1) / weights.sum(1)
