"""Compute a language model's logits only at the positions that predict an answer."""

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
    """Make a model compute its logits only at the given positions while the block runs.

    The logits of all these positions come out as one row (1 × places × vocabulary). In a
    small model, most of the time and memory goes into logits that no answer needs. The
    result is exact: the steps just before the output layer (T5 scales its hidden states)
    and after it (some models cap their logits) treat each position independently.
    """

    def choose(layer: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (inputs[0][rows, columns][None], *inputs[1:])

    output: Any = model.get_output_embeddings()
    hook = output.register_forward_pre_hook(choose)
    try:
        yield
    finally:
        hook.remove()
