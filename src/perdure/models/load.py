"""From a checkpoint's files to the kind of backbone that it makes."""

from typing import Any

import torch
from PIL import Image

from perdure.errors import BackboneError
from perdure.models import pretrained, resolution
from perdure.models.backbone import Backbone, Pooling, evaluating
from perdure.models.encoder import Encoder
from perdure.models.examples import Batch
from perdure.models.model_files import ModelFiles


def load_files(
    files: ModelFiles,
    *,
    pooling: Pooling = "auto",
    max_length: int = 128,
    image_size: int | None = None,
    head: str | None = None,
) -> Backbone:
    """As `Backbone.load`, from files that were found already. There is one kind of backbone yet: `Encoder`."""
    source = files.source
    with pretrained.quietly(), pretrained.loading(source):
        opened = pretrained.open_model(files, pooling, head)
        model, head_name = opened.model, opened.head_name
        has_bias = head_name is None or pretrained.take_head(model, head_name).bias is not None
        if image_size and opened.kind == "text":
            raise BackboneError(
                f"`image_size` is for images, and `{source}` reads texts. Leave it out."
            )
        if image_size:
            resolution.change(model, opened.processor, image_size)
        backbone = Encoder(
            model,
            opened.processor,
            source=source,
            pooling="mean" if head_name is None else "stock",
            head_name=head_name,
            width=0,
            max_length=min(max_length, opened.limit),
            image_size=image_size,
            files=files,
            dtype=opened.dtype,
            stock_head_has_bias=has_bias,
        )
        backbone.width = _width(backbone)
    return backbone


@torch.no_grad()
def _width(backbone: Encoder) -> int:
    """The width of the feature, found by computing one: what cannot be computed with is refused when it is loaded.

    Raises
    ------
    BackboneError
        The feature is no finite vector.
    """
    with evaluating(backbone):
        batch = _first_look(backbone)
        pooled, features = backbone(batch), backbone.features(batch)
    finite = pooled.isfinite().all() and features.isfinite().all()
    if pooled.dim() != 2 or features.dim() != 2 or not finite:
        raise BackboneError(
            f"`{backbone.source}` gives no finite feature of an example, and so no answer."
        )
    return pooled.shape[1]


def _first_look(backbone: Encoder) -> Batch:
    """Two examples for a first look at a model: texts of different lengths, or images."""
    processor = backbone.processor
    if backbone.kind == "image":
        images = [Image.new("RGB", (64, 64), color) for color in ("black", "gray")]
        inputs = processor(images=images, return_tensors="pt")
    else:
        encoded = processor(
            ["one", "one and two and three"], truncation=True, max_length=backbone.max_length
        )
        texts = [{name: column[i] for name, column in encoded.items()} for i in range(2)]
        if not all(
            text["input_ids"] for text in texts
        ):  # words that a small vocabulary does not know
            texts = _tokens_alone(processor)
        inputs = processor.pad(texts, return_tensors="pt")
    return Batch(dict(inputs))


def _tokens_alone(tokenizer: Any) -> list[dict[str, Any]]:
    """Two texts of one token, repeated."""
    token = min(set(tokenizer.get_vocab().values()) - set(tokenizer.all_special_ids))
    return [{"input_ids": [token] * length, "attention_mask": [1] * length} for length in (1, 3)]
