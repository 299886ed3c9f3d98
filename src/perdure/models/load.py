"""Build the right kind of backbone from the files of a checkpoint."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal

import torch
from PIL import Image

from perdure.errors import BackboneError
from perdure.models import pretrained, resolution
from perdure.models.backbone import Backbone, Pooling, evaluating
from perdure.models.encoder import Encoder, Tokens
from perdure.models.examples import Batch
from perdure.models.language import LanguageModel
from perdure.models.model_files import ModelFiles
from perdure.models.prompts import Prompts, Truncate
from perdure.models.tokenizing import PreTrainedTokenizerBase

# The defaults of `max_length` in tokens, for texts to classify and for prompts.
LONGEST_TEXT = 128
LONGEST_PROMPT = 1024


@dataclass(frozen=True)
class TextSettings:
    """Settings that apply only to language models; see `Backbone.load`."""

    max_new_tokens: int = 128
    truncate: Truncate = "middle"
    chat_template: Literal["auto", "none"] = "auto"
    system_message: str | None = None
    normalized: bool = False
    dtype: Literal["float32", "bfloat16", "float16", "nf4"] = "float32"


def load_files(
    files: ModelFiles,
    *,
    pooling: Pooling = "auto",
    max_length: int | None = None,
    image_size: int | None = None,
    head: str | None = None,
    text: TextSettings | None = None,
    outline: bool = False,
) -> Backbone:
    """Load a backbone as `Backbone.load` does, but from the given files.

    A checkpoint with the output layer of a language model is loaded as a language model
    if `pooling` is `auto`, and as an encoder otherwise. With `outline` the parameters
    have shapes but no values (see `perdure.models.outline`).
    """
    source = files.source
    text = text or TextSettings()
    with pretrained.quietly(), pretrained.loading(source):
        if pooling == "auto" and pretrained.answers_with_text(files):
            _refuse_settings(source, image_size=image_size, head=head)
            return _language_model(files, max_length, text, outline)
        _refuse_text_settings(source, text)
        opened = pretrained.open_model(files, pooling, head, outline=outline)
        has_bias = True
        width = getattr(opened.model.config, "hidden_size", 0)
        if opened.head_name is not None:
            stock_head = pretrained.take_head(opened.model, opened.head_name)
            has_bias = stock_head.bias is not None
            width = stock_head.in_features
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
            width=width,
            max_length=min(max_length or LONGEST_TEXT, opened.limit),
            image_size=image_size,
            files=files,
            dtype=opened.dtype,
            stock_head_has_bias=has_bias,
        )
        # The width is measured, which requires a complete backbone with weights.
        if not outline:
            backbone.width = _width(backbone)
    return backbone


def load_with(files: ModelFiles, settings: Mapping[str, Any], *, outline: bool = False) -> Backbone:
    """Load a backbone from the given files, with `settings` as arguments of `Backbone.load`."""
    others = dict(settings)
    of_text = {}
    for field in fields(TextSettings):
        if field.name in others:
            of_text[field.name] = others.pop(field.name)
    return load_files(files, text=TextSettings(**of_text), outline=outline, **others)


def _language_model(
    files: ModelFiles, max_length: int | None, settings: TextSettings, outline: bool
) -> LanguageModel:
    opened = pretrained.open_language_model(files, settings.dtype, outline=outline)
    tokenizer = opened.processor
    decodes = bool(opened.model.config.is_encoder_decoder)
    # An encoder reads only the prompt; a causal model needs room for the answer after it.
    room = opened.limit if decodes else opened.limit - settings.max_new_tokens
    if room < 1:
        raise BackboneError(
            f"`{files.source}` reads at most {opened.limit} tokens, so no prompt fits before an "
            f"answer of `max_new_tokens: {settings.max_new_tokens}`. Lower that setting."
        )
    if decodes:
        start = opened.model.config.decoder_start_token_id
        _check_token(opened, start, f"`decoder_start_token_id` of `{files.source}`")
    prompts = Prompts(
        tokenizer,
        files.source,
        # Only an outline may have no tokenizer, and it never answers.
        stops=_stops(files.source, opened) if tokenizer else (),
        max_length=min(max_length or LONGEST_PROMPT, room),
        max_new_tokens=settings.max_new_tokens,
        truncate=settings.truncate,
        chat=settings.chat_template == "auto" and bool(tokenizer and tokenizer.chat_template),
        system_message=settings.system_message,
        decodes=decodes,
    )
    return LanguageModel(
        opened.model,
        tokenizer,
        prompts,
        source=files.source,
        chat_template=settings.chat_template,
        normalized=settings.normalized,
        files=files,
        dtype=opened.dtype,
    )


def _stops(source: str, opened: pretrained.Opened) -> tuple[int, ...]:
    """Return the tokens that end an answer: first the tokenizer's, then the model's.

    A chat model may end a turn with a different token from the one that ends a text.
    """
    generation = opened.model.generation_config
    of_model = generation.eos_token_id if generation else None
    if not isinstance(of_model, list):
        of_model = [of_model]
    stops = [token for token in (opened.processor.eos_token_id, *of_model) if token is not None]
    if not stops:
        raise BackboneError(
            f"The tokenizer of `{source}` has no end-of-sequence token, so an answer would never "
            "end. Set `eos_token` in its `tokenizer_config.json`."
        )
    for token in stops:
        _check_token(opened, token, f"`eos_token_id` of `{source}`")
    return tuple(dict.fromkeys(stops))


def _check_token(opened: pretrained.Opened, token: object, what: str) -> None:
    """Check that a token id named in a file is in the model's vocabulary."""
    size = opened.model.config.get_text_config().vocab_size
    # `True` would count as 1, which is never meant.
    if not isinstance(token, int) or isinstance(token, bool) or not 0 <= token < size:
        raise BackboneError(
            f"{what} is {str(token)[:40]}, but the model has tokens from 0 to {size - 1}. Fix "
            "`generation_config.json` and `config.json`, or copy them from the original model."
        )


def _refuse_settings(source: str, *, image_size: int | None, head: str | None) -> None:
    """Reject settings for encoders, because the checkpoint is a language model."""
    for name, value in {"image_size": image_size, "head": head}.items():
        if value is not None:
            raise BackboneError(
                f"`{source}` is a language model, which takes no `{name}`. Leave it out, or use "
                "`pooling: mean` to classify with heads on its hidden states."
            )


def _refuse_text_settings(source: str, text: TextSettings) -> None:
    """Reject settings for language models, because the backbone classifies with heads."""
    for field in fields(TextSettings):
        if getattr(text, field.name) != field.default:
            raise BackboneError(
                f"`{field.name}` is for language models, but `{source}` classifies with heads. "
                "Leave it out."
            )


@torch.no_grad()
def _width(backbone: Encoder) -> int:
    """Return the length of the feature vector, measured on two sample inputs.

    A model that cannot compute features is thus rejected as soon as it is loaded.

    Raises
    ------
    BackboneError
        A feature is not a finite vector.
    """
    with evaluating(backbone):
        batch = _sample(backbone)
        pooled = backbone(batch)
        features = backbone.features(batch)
    are_vectors = pooled.dim() == 2 and features.dim() == 2
    if not are_vectors or not pooled.isfinite().all() or not features.isfinite().all():
        raise BackboneError(
            f"`{backbone.source}` does not compute a finite feature, so it cannot classify."
        )
    return pooled.shape[1]


def _sample(backbone: Encoder) -> Batch:
    """Return a batch of two sample inputs for a model: texts of different lengths, or images."""
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
    # A small vocabulary may contain none of these words.
    if not all(text["input_ids"] for text in texts):
        texts = _repeated_token(processor)
    padded = processor.pad(texts, return_tensors="pt")
    return Batch(dict(padded))


def _repeated_token(tokenizer: PreTrainedTokenizerBase) -> list[Tokens]:
    """Return two texts that repeat one token of the vocabulary, once and three times."""
    special = set(tokenizer.all_special_ids)
    ordinary = set(tokenizer.get_vocab().values()) - special
    token = min(ordinary)
    texts: list[Tokens] = []
    for length in (1, 3):
        text = {"input_ids": [token] * length, "attention_mask": [1] * length}
        texts.append(text)
    return texts
