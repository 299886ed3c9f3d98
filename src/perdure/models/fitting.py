"""Check that an adapter fits a model."""

import torch
from torch import Tensor, nn

from perdure.errors import BackboneError
from perdure.models.adapters import Adapter, base_layer
from perdure.models.matrices import matrix


def check_fits(model: nn.Module, adapter: Adapter) -> None:
    """Check that an adapter fits a model, before it is inserted.

    Raises
    ------
    BackboneError
        The model lacks one of the adapter's layers, or has a layer of another shape.
    """
    for key, value in adapter.parameters.items():
        path = key.removesuffix(".weight").removesuffix(".bias")
        name, _, kind = path.rpartition(".")
        layer = base_layer(model, name)
        weight = matrix(layer) if hasattr(layer, "weight") else torch.empty(0)
        if kind.startswith("full_"):
            target = weight if kind == "full_weight" else getattr(layer, "bias", None)
            fits = target is not None and target.shape == value.shape
        else:
            fits = _fits(key, kind, value, weight)
        if not fits:
            raise BackboneError(
                f"`{key}` of task `{adapter.name}` has the shape {list(value.shape)}, but the "
                f"layer of `{type(model).__name__}` has {list(weight.shape)}. Is it the model that "
                "the run began with?"
            )


def _fits(key: str, kind: str, value: Tensor, weight: Tensor) -> bool:
    """Return whether a parameter of LoRA or a bottleneck fits a weight of shape out × in."""
    rows, columns = weight.shape if weight.dim() == 2 else (0, 0)
    if kind == "lora_A":
        return value.shape[-1] == columns
    if kind == "lora_B":
        return len(value) == rows
    # A bottleneck reads and writes the layer's output; only its inner bias has another length.
    return rows in value.shape or key.endswith("_down.bias")
