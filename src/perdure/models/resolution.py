"""Change the size of the images that a vision transformer reads."""

from typing import Any

import torch
from torch import nn

from perdure.errors import BackboneError
from perdure.models.pretrained import BaseImageProcessor, PreTrainedModel


def change(model: PreTrainedModel, processor: BaseImageProcessor, size: int) -> None:
    """Make a vision transformer and its processor read images of `size` × `size` pixels.

    The position embeddings are interpolated once, with the method that the model
    provides. Passing `interpolate_pos_encoding=True` in every call would not do, because
    an export must be a stock checkpoint for the new size.

    Raises
    ------
    BackboneError
        The model has no position embeddings to interpolate, `size` is not a multiple of
        its patch size, or the model cannot read images of that size.
    """
    embeddings = _embeddings(model)
    patch = getattr(model.config, "patch_size", None)
    if not isinstance(patch, int) or size % patch:
        raise BackboneError(
            f"`image_size={size}` must be a multiple of the model's patch size, {patch} pixels."
        )
    patches = (size // patch) ** 2
    _interpolate(embeddings, patches, size)
    _note_size(embeddings, patches, size)
    model.config.image_size = size
    _resize(processor, size)
    # Only a trial shows whether another layer, such as relative positions, depends on the size.
    try:
        with torch.no_grad():
            model(torch.zeros(1, 3, size, size))
    except RuntimeError as error:
        raise BackboneError(
            f"`image_size`: `{type(model).__name__}` reads only images of its original size."
        ) from error


def _embeddings(model: PreTrainedModel) -> nn.Module:
    """Return the module that has position embeddings and can interpolate them."""
    for module in model.modules():
        if hasattr(module, "interpolate_pos_encoding"):
            if getattr(module, "position_embeddings", None) is not None:
                return module
            break
    raise BackboneError(
        f"`image_size`: `{type(model).__name__}` has no position embeddings. Leave it out."
    )


def _interpolate(embeddings: nn.Module, patches: int, size: int) -> None:
    before = embeddings.get_parameter("position_embeddings")
    width = before.shape[-1]
    # The method reads only this tensor's shape: one row per patch, and one for the class token.
    like = before.new_empty(1, patches + 1, width)
    after = embeddings.interpolate_pos_encoding(like, size, size)  # pyright: ignore
    values = after.detach().clone()
    embeddings.position_embeddings = nn.Parameter(values, requires_grad=False)


def _note_size(embeddings: nn.Module, patches: int, size: int) -> None:
    """Update the image size stored in the embedding layers, which reject images of other sizes."""
    values = {"image_size": (size, size), "num_patches": patches}
    patch_embeddings = embeddings.get_submodule("patch_embeddings")
    for module in (embeddings, patch_embeddings):
        for name, value in values.items():
            if hasattr(module, name):
                setattr(module, name, value)


def _resize(processor: Any, size: int) -> None:
    """Make the processor produce images of the new size with the same content.

    If it crops a margin, the margin keeps its proportion of the image.
    """
    crop = None
    if getattr(processor, "do_center_crop", False):
        crop = getattr(processor, "crop_size", None)
    if "shortest_edge" in processor.size:
        edge = processor.size["shortest_edge"]
        whole = crop["height"] if crop else edge
        processor.size = {"shortest_edge": round(edge * size / whole)}
    else:
        processor.size = {"height": size, "width": size}
    if crop:
        processor.crop_size = {"height": size, "width": size}
