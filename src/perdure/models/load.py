"""Make the right kind of backbone from a checkpoint's files."""

import torch
from PIL import Image

from perdure.errors import BackboneError
from perdure.models import pretrained, resolution
from perdure.models.backbone import Backbone, Pooling, evaluating
from perdure.models.encoder import Encoder, Tokens
from perdure.models.examples import Batch
from perdure.models.model_files import ModelFiles
from perdure.models.tokenizing import PreTrainedTokenizerBase


def load_files(
    files: ModelFiles,
    *,
    pooling: Pooling = "auto",
    max_length: int = 128,
    image_size: int | None = None,
    head: str | None = None,
) -> Backbone:
    """Load a backbone as `Backbone.load` does, from files that are already found.

    There is only one kind of backbone yet: `Encoder`.
    """
    source = files.source
    with pretrained.quietly(), pretrained.loading(source):
        opened = pretrained.open_model(files, pooling, head)
        has_bias = True
        if opened.head_name is not None:
            stock_head = pretrained.take_head(opened.model, opened.head_name)
            has_bias = stock_head.bias is not None
        if image_size and opened.kind == "text":
            raise BackboneError(
                f"`image_size` is for images, and `{source}` reads texts. Leave it out."
            )
        if image_size:
            resolution.change(opened.model, opened.processor, image_size)
        backbone = Encoder(
            opened.model,
            opened.processor,
            source=source,
            pooling="mean" if opened.head_name is None else "stock",
            head_name=opened.head_name,
            width=0,
            max_length=min(max_length, opened.limit),
            image_size=image_size,
            files=files,
            dtype=opened.dtype,
            stock_head_has_bias=has_bias,
        )
        # The width is measured, and the backbone must be complete to compute a feature.
        backbone.width = _width(backbone)
    return backbone


@torch.no_grad()
def _width(backbone: Encoder) -> int:
    """Return the width of the feature by computing one.

    A model that cannot be computed with is thereby refused when it is loaded.

    Raises
    ------
    BackboneError
        The feature is not a finite vector.
    """
    with evaluating(backbone):
        batch = _sample(backbone)
        pooled = backbone(batch)
        features = backbone.features(batch)
    are_vectors = pooled.dim() == 2 and features.dim() == 2
    if not are_vectors or not pooled.isfinite().all() or not features.isfinite().all():
        raise BackboneError(
            f"`{backbone.source}` gives no finite feature of an example, and so no answer."
        )
    return pooled.shape[1]


def _sample(backbone: Encoder) -> Batch:
    """Return two examples to try a model with: texts of different lengths, or images."""
    processor = backbone.processor
    if backbone.kind == "image":
        images = [Image.new("RGB", (64, 64), color) for color in ("black", "gray")]
        pixels = processor(images=images, return_tensors="pt")
        return Batch(dict(pixels))
    columns = processor(
        ["one", "one and two and three"],
        truncation=True,
        max_length=backbone.max_length,
    )
    texts: list[Tokens] = []
    for row in range(2):
        text = {name: column[row] for name, column in columns.items()}
        texts.append(text)
    # A small vocabulary may know none of these words.
    if not all(text["input_ids"] for text in texts):
        texts = _repeated_token(processor)
    padded = processor.pad(texts, return_tensors="pt")
    return Batch(dict(padded))


def _repeated_token(tokenizer: PreTrainedTokenizerBase) -> list[Tokens]:
    """Return two texts, of one and of three tokens, all the same."""
    special = set(tokenizer.all_special_ids)
    ordinary = set(tokenizer.get_vocab().values()) - special
    token = min(ordinary)
    texts: list[Tokens] = []
    for length in (1, 3):
        text = {"input_ids": [token] * length, "attention_mask": [1] * length}
        texts.append(text)
    return texts
