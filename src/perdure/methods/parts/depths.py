"""Distillation of hidden states at several depths of a transformer."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from perdure.errors import InputError
from perdure.models import pretrained
from perdure.models.backbone import Backbone
from perdure.models.examples import Batch
from perdure.models.inputs import without_padding


def blocks_at(backbone: Backbone, depths: int) -> list[nn.Module]:
    """Return `depths` evenly spaced transformer blocks, including the last block.

    If the model has fewer blocks, all of them are returned. The blocks of an
    encoder–decoder model are counted from the first of the encoder to the last of the
    decoder.

    Raises
    ------
    InputError
        The model has no transformer blocks.
    """
    blocks = [module for module in backbone.model.modules() if pretrained.is_block(module)]
    if not blocks:
        raise InputError(
            f"`{backbone.source}` has no transformer blocks whose hidden states could be "
            "distilled. Set `distillation: 0`."
        )
    count = min(depths, len(blocks))
    # Counted from 1, the blocks n/count, 2n/count, … n, rounded down.
    return [blocks[(number + 1) * len(blocks) // count - 1] for number in range(count)]


def run_watched(
    backbone: Backbone, batch: Batch, blocks: Sequence[nn.Module]
) -> tuple[Tensor, list[Float[Tensor, "_ width"]]]:
    """Run the backbone on a batch, and return its output and the output of each block.

    The output of a block has one row per token, without padding.
    """
    states: list[Tensor] = []

    def keep(block: nn.Module, arguments: object, output: Tensor | tuple[Any, ...]) -> None:
        hidden = output[0] if isinstance(output, tuple) else output
        states.append(without_padding(hidden, batch))

    handles = [block.register_forward_hook(keep) for block in blocks]
    try:
        return backbone(batch), states
    finally:
        for handle in handles:
            handle.remove()


def distance_at_depths(
    student: Sequence[Float[Tensor, "_ width"]],
    teacher: Sequence[Float[Tensor, "_ width"]],
) -> Float[Tensor, ""]:
    """Return the mean squared distance between the states of student and teacher.

    Each state is first scaled to unit length, because lengths differ widely between
    depths. The mean is over the tokens and then over the depths; the largest possible
    value is 4.
    """
    distances = []
    for ours, theirs in zip(student, teacher, strict=True):
        difference = F.normalize(ours.float(), dim=1) - F.normalize(theirs.float(), dim=1)
        distances.append(difference.square().sum(1).mean())
    return torch.stack(distances).mean()
