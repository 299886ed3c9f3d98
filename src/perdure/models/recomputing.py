"""Gradient checkpointing: activations are recomputed in the backward pass to save memory."""

import contextlib
from collections.abc import Iterator
from typing import Any

from torch import nn

from perdure.errors import InputError
from perdure.models import pretrained
from perdure.models.backbone import Backbone


@contextlib.contextmanager
def recomputed(backbone: Backbone) -> Iterator[None]:
    """Turn on gradient checkpointing for each transformer block of the model.

    It is turned off when the context exits.

    Raises
    ------
    InputError
        The architecture does not support gradient checkpointing.
    """
    model: Any = backbone.model
    if not getattr(model, "supports_gradient_checkpointing", False):
        raise InputError(
            f"`gradient_checkpointing` is not supported by `{type(model).__name__}` of "
            "transformers. Leave it out, or lower `batch_size`."
        )
    # Older versions of transformers have only the old names, which newer versions warn about.
    new = hasattr(model, "activation_checkpointing_enable")
    name = "activation" if new else "gradient"
    kwargs = {f"{name}_checkpointing_kwargs": {"use_reentrant": False}}
    getattr(model, f"{name}_checkpointing_enable")(**kwargs)
    try:
        yield
    finally:
        getattr(model, f"{name}_checkpointing_disable")()
        if getattr(model, "main_input_name", "") == "input_ids":
            # transformers makes the embeddings require gradients, but does not undo it.
            model.disable_input_require_grads()


def keep_recomputing(model: nn.Module) -> None:
    """Keep gradient checkpointing active in blocks that are in evaluation mode.

    The blocks are put into training mode, while the modules inside them, such as dropout
    layers, stay in evaluation mode.

    Raises
    ------
    InputError
        A block applies dropout itself, rather than through a module inside it.
    """
    for name, module in model.named_modules():
        if not pretrained.is_block(module) or module.training:
            continue
        # Dropout modules stay off, but a rate that the block itself applies would take effect.
        rates = {key: value for key, value in vars(module).items() if "dropout" in key}
        if any(isinstance(rate, float) and rate > 0 for rate in rates.values()):
            raise InputError(
                f"`{name}` applies dropout itself, so `gradient_checkpointing` would turn it on "
                "despite `backbone_dropout: false`. Set `backbone_dropout: true`."
            )
        # Set the mode of the block only: `train()` would also reach the modules inside.
        module.training = True
