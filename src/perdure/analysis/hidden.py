"""The hidden states of a transformer's layers, one vector for each example."""

import torch
from jaxtyping import Float
from torch import Tensor

from perdure.errors import BackboneError
from perdure.models.backbone import Backbone, evaluating
from perdure.models.examples import Examples, in_order


@torch.no_grad()
def hidden_states(backbone: Backbone, examples: Examples) -> list[Float[Tensor, "examples _"]]:
    """What the embeddings and each layer after them give, as the model is now: means over tokens or places, on the CPU.

    Padding is left out of the means. The layers of a model need not be of one width.

    Raises
    ------
    BackboneError
        The model does not give its hidden states.
    """
    parts: list[tuple[list[int], list[Tensor]]] = []
    with evaluating(backbone):
        for rows, batch in examples.batches(device=backbone.device):
            states = backbone.model(**batch.inputs, output_hidden_states=True).hidden_states
            if states is None:
                raise BackboneError(
                    f"`{type(backbone.model).__name__}` does not give the hidden states of its layers."
                )
            mask = batch.inputs.get("attention_mask") if backbone.kind == "text" else None
            parts.append((rows, [_mean(state, mask).cpu() for state in states]))
    return [in_order((rows, states[i]) for rows, states in parts) for i in range(len(parts[0][1]))]


def _mean(state: Tensor, mask: Tensor | None) -> Float[Tensor, "examples width"]:
    if state.dim() == 4:  # convolutional: batch, channels, height, width
        return state.flatten(2).mean(2)
    weights = torch.ones_like(state[..., :1]) if mask is None else mask[..., None].to(state.dtype)
    return (state * weights).sum(1) / weights.sum(1)
