"""A language model's output layer, computed only at the positions that predict an answer."""

import contextlib
from collections.abc import Iterator
from typing import Any

from jaxtyping import Int
from torch import Tensor, nn
from transformers import PreTrainedModel


@contextlib.contextmanager
def logits_at(
    model: PreTrainedModel, rows: Int[Tensor, " places"], columns: Int[Tensor, " places"]
) -> Iterator[None]:
    """Make a model compute its logits only at these positions, as one row, while the block runs.

    Most of a small model's time and memory go into logits that no answer needs. Only these
    positions reach the output layer; steps before it (T5 scales) and after it (some models cap
    their logits) act on each position independently.
    """

    def choose(layer: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (inputs[0][rows, columns][None], *inputs[1:])

    output: Any = model.get_output_embeddings()
    hook = output.register_forward_pre_hook(choose)
    try:
        yield
    finally:
        hook.remove()
