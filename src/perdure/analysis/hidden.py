"""The hidden states of a transformer's layers, one vector for each example."""

import torch
from jaxtyping import Float
from torch import Tensor

from perdure.errors import BackboneError
from perdure.models.backbone import Backbone, evaluating
from perdure.models.examples import Examples, in_order


@torch.no_grad()
def hidden_states(backbone: Backbone, examples: Examples) -> list[Float[Tensor, "examples _"]]:
    """Return the output of the embeddings and of each layer, for the model as it is now.

    Each is a mean over tokens or image patches, on the CPU. Padding does not count. The layers
    of a model need not have the same width.

    Raises
    ------
    BackboneError
        The model does not return its hidden states.
    """
    # Batches hold examples of similar length, so their row numbers are kept to undo the sorting.
    row_numbers: list[list[int]] = []
    means: list[list[Tensor]] = []
    with evaluating(backbone):
        for rows, batch in examples.batches(device=backbone.device):
            output = backbone.model(**batch.inputs, output_hidden_states=True)
            states = output.hidden_states
            # Some architectures accept `output_hidden_states` and still return None.
            if states is None:
                name = type(backbone.model).__name__
                raise BackboneError(f"`{name}` does not give the hidden states of its layers.")
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


def _mean(state: Tensor, mask: Tensor | None) -> Float[Tensor, "examples width"]:
    if state.dim() == 4:  # convolutional: batch, channels, height, width
        return state.flatten(2).mean(2)
    # A picture has no padding: all of its tokens count.
    weights = torch.ones_like(state[..., :1])
    if mask is not None:
        weights = mask[..., None].to(state.dtype)
    return (state * weights).sum(1) / weights.sum(1)
