"""Frozen models in 4 bits, as in QLoRA: NormalFloat from bitsandbytes, through transformers.

Nothing can be added to 4-bit weights. Adapters are computed alongside their layers
anyway, and the change that a rule computes is applied in the same way (see `beside`).
"""

import importlib.util

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import BitsAndBytesConfig

from perdure.errors import BackboneError

NF4 = "nf4"
"""The name of the 4-bit data type in recipes."""


def quantisation(source: str) -> BitsAndBytesConfig:
    """Return transformers' settings for loading a model in 4 bits.

    Parameters
    ----------
    source
        The model's name, for error messages.

    Raises
    ------
    BackboneError
        bitsandbytes is not installed.

    References
    ----------
    Dettmers et al., QLoRA, arXiv 2305.14314.
    """
    if importlib.util.find_spec("bitsandbytes") is None:
        raise BackboneError(
            f"`{source}` cannot be loaded with `dtype: {NF4}`, because bitsandbytes is not "
            "installed. Install `perdure[4bit]`, or use `dtype: bfloat16`."
        )
    # Products are computed in single precision, like everything except the frozen weights.
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=NF4,
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.float32,
    )


def prepare(model: nn.Module) -> None:
    """Prevent bitsandbytes from repacking the weights of a model.

    On CPUs with AVX-512, bitsandbytes repacks weights for inference and back for
    training, which rounds their scales. The result of training would then depend on when
    the model was evaluated.
    """
    for layer in model.modules():
        if hasattr(layer, "support_avx512bf16_for_cpu"):
            layer.support_avx512bf16_for_cpu = False  # pyright: ignore


def mark(model: nn.Module) -> None:
    """Mark a model on the `meta` device as one that is quantised to 4 bits."""
    model.is_loaded_in_4bit = True  # pyright: ignore[reportArgumentType, reportAttributeAccessIssue]


def bytes_in_4_bits(model: nn.Module) -> int:
    """Estimate the memory that a model on the `meta` device would take in 4 bits, in bytes.

    All linear layers are quantised except the output layer and layers that share its
    weight. Each block of 64 values has a scale of one byte, and each 256 scales have
    another one of four bytes.
    """
    output = getattr(model, "get_output_embeddings", lambda: None)()
    kept = id(output.weight) if output is not None else 0
    packed: set[int] = set()
    for layer in model.modules():
        if isinstance(layer, nn.Linear) and id(layer.weight) != kept:
            packed.add(id(layer.weight))
    total = 0.0
    for parameter in model.parameters():
        if id(parameter) in packed:
            scales = parameter.numel() / 64
            total += parameter.numel() / 2 + scales + 4 * scales / 256
        else:
            total += parameter.nbytes
    return round(total)


def is_quantised(model: nn.Module) -> bool:
    """Return whether a model's linear layers are in 4 bits."""
    return bool(getattr(model, "is_loaded_in_4bit", False))


def in_4_bits(weight: Tensor) -> bool:
    """Return whether a weight is packed in 4 bits, as integers that contain two values each."""
    return not weight.is_floating_point()


def beside(layer: nn.Module, change: Tensor) -> RemovableHandle:
    """Add `change` (out × in) times the layer's input to its output, until the handle is removed.

    The result is the same as if the change were added to the layer's weight.
    """

    def add(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        (x,) = inputs
        product = nn.functional.linear(x.float(), change.to(x.device).float())
        return output + product.to(output.dtype)

    return layer.register_forward_hook(add)
