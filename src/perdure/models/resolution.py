"""Read images at another size than the checkpoint was made for."""

from typing import Any

import torch
from torch import nn

from perdure.errors import BackboneError


def change(model: Any, processor: Any, size: int) -> None:
    """Let a vision transformer and its processor read images of `size` pixels a side.

    The position embeddings are interpolated once and for all, by the model's own method, so that what is saved later is
    a stock checkpoint of the new size.

    Raises
    ------
    BackboneError
        It has no position embeddings to interpolate, `size` is no multiple of its patches, or it cannot read that size.
    """
    embeddings = next(
        (module for module in model.modules() if hasattr(module, "interpolate_pos_encoding")), None
    )
    if embeddings is None or getattr(embeddings, "position_embeddings", None) is None:
        raise BackboneError(
            f"`image_size`: `{type(model).__name__}` has no position embeddings. Leave it out."
        )
    patch = getattr(model.config, "patch_size", None)
    if not isinstance(patch, int) or size % patch:
        raise BackboneError(
            f"`image_size={size}` must be a multiple of the model's patches of {patch} pixels."
        )
    old = embeddings.position_embeddings
    tokens = (size // patch) ** 2
    like = old.new_empty(1, tokens + 1, old.shape[-1])  # the class token has a place too
    new = embeddings.interpolate_pos_encoding(like, size, size)
    embeddings.position_embeddings = nn.Parameter(new.detach().clone(), requires_grad=False)
    for module in (embeddings, embeddings.patch_embeddings):
        for name, value in (("image_size", (size, size)), ("num_patches", tokens)):
            if hasattr(module, name):
                setattr(module, name, value)
    model.config.image_size = size
    _resize(processor, size)
    try:
        with torch.no_grad():
            model(torch.zeros(1, 3, size, size))
    except RuntimeError as error:
        raise BackboneError(
            f"`image_size`: `{type(model).__name__}` reads images of its own size only."
        ) from error


def _resize(processor: Any, size: int) -> None:
    """The same picture in fewer or more pixels: where a margin is cut off, it keeps its share."""
    crop = (
        getattr(processor, "crop_size", None)
        if getattr(processor, "do_center_crop", False)
        else None
    )
    if "shortest_edge" in processor.size:
        whole = crop["height"] if crop else processor.size["shortest_edge"]
        processor.size = {"shortest_edge": round(processor.size["shortest_edge"] * size / whole)}
    else:
        processor.size = {"height": size, "width": size}
    if crop:
        processor.crop_size = {"height": size, "width": size}
