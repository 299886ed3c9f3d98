"""Layers whose activations are recomputed in the backward pass, rather than kept in memory."""

import contextlib
from collections.abc import Iterator
from typing import Any

from torch import nn

from perdure.errors import InputError
from perdure.models import pretrained
from perdure.models.backbone import Backbone


@contextlib.contextmanager
def recomputed(backbone: Backbone) -> Iterator[None]:
    """Make transformers recompute each block of the model in the backward pass.

    Raises
    ------
    InputError
        The architecture does not support it.
    """
    model: Any = backbone.model
    if not getattr(model, "supports_gradient_checkpointing", False):
        raise InputError(
            f"`gradient_checkpointing` is not supported by `{type(model).__name__}` of "
            "transformers. Leave it out, or lower `batch_size`."
        )
    # Older versions of transformers have the old names alone, which newer ones warn of.
    new = hasattr(model, "activation_checkpointing_enable")
    name = "activation" if new else "gradient"
    kwargs = {f"{name}_checkpointing_kwargs": {"use_reentrant": False}}
    getattr(model, f"{name}_checkpointing_enable")(**kwargs)
    try:
        yield
    finally:
        getattr(model, f"{name}_checkpointing_disable")()
        if getattr(model, "main_input_name", "") == "input_ids":
            # transformers has the embeddings ask for gradients, and leaves it at that.
            model.disable_input_require_grads()


def keep_recomputing(model: nn.Module) -> None:
    """Make blocks recompute even while dropout is off, as in evaluation mode.

    Raises
    ------
    InputError
        A block applies dropout by itself.
    """
    for name, module in model.named_modules():
        if not pretrained.is_block(module) or module.training:
            continue
        # Modules for dropout stay as they are; a rate that the block itself applies would act.
        rates = {key: value for key, value in vars(module).items() if "dropout" in key}
        if any(isinstance(rate, float) and rate > 0 for rate in rates.values()):
            raise InputError(
                f"`{name}` applies dropout by itself, so that `gradient_checkpointing` would turn "
                "it on against `backbone_dropout: false`. Set `backbone_dropout: true`."
            )
        # Its own mode alone: `train()` would reach the modules inside.
        module.training = True
