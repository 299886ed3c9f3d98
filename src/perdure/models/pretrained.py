"""A pre-trained model, opened: the one place where a model's folder becomes a model and its processor.

What is on disk is checked before anything is built, and what was built is compared with what was on disk. Code from a
model's folder is never run, and nobody is asked whether it may be.
"""

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
import transformers
from torch import nn
from transformers.models.auto import modeling_auto

from perdure.errors import BackboneError, PerdureError
from perdure.models import model_config, model_weights, tokenizing
from perdure.models.model_files import MODULES, ModelFiles
from perdure.models.model_weights import Stored

Kind = Literal["text", "image"]
MOST_PIXELS = 4096  # a side, of images as a processor makes them; the largest in use are of 1,024
EDGES = ("height", "width", "shortest_edge", "longest_edge", "max_height", "max_width")
NOTHING_ELSE = {"trust_remote_code": False, "local_files_only": True}


@dataclass(frozen=True)
class Opened:
    """A model with its processor.

    Attributes
    ----------
    model
        With a head, which is an identity, so that it returns the head's input; or the encoder alone.
    head_name
        The name of that head; none for an encoder alone.
    dtype
        The type in which most of the weights are stored. They are computed with in single precision.
    limit
        The longest text in tokens.
    """

    kind: Kind
    processor: Any
    model: Any
    head_name: str | None
    dtype: torch.dtype
    limit: int


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Without transformers' progress bars and its advice to train a head: we make our own."""
    verbosity, bars = (
        transformers.logging.get_verbosity(),
        transformers.logging.is_progress_bar_enabled(),
    )
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers.logging.set_verbosity(verbosity)
        if bars:
            transformers.logging.enable_progress_bar()


@contextlib.contextmanager
def loading(source: str) -> Iterator[None]:
    """Make one sentence of whatever goes wrong in transformers, which takes a damaged file for a sound one.

    What it raises then is of any class, and a panic of its tokenizers is not even an `Exception`.
    """
    try:
        yield
    except PerdureError:
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        why = " ".join(str(error).split())[:300]
        raise BackboneError(
            f"No model could be loaded from `{source}`: a file of it is missing or damaged, or does not fit the "
            f"others. ({type(error).__name__}: {why})"
        ) from error


def open_model(files: ModelFiles, pooling: str, head: str | None) -> Opened:
    """Open a model for `pooling`: `stock` (with a head), `mean` (the encoder alone), or `auto`.

    Raises
    ------
    BackboneError
        A file is missing, damaged or absurd; the model is none for classification; or weights are missing.
    """
    files.check()
    config = model_config.read(files)
    kind = _kind(files.source, config)
    files.check_weights()
    tensors = model_weights.stored(files)
    if kind == "text":
        processor = tokenizing.load(files, config)
        tokenizing.give_padding(files.source, config, processor)
    else:
        processor = transformers.AutoImageProcessor.from_pretrained(files.folder, **NOTHING_ELSE)
        _check_pixels(files.source, processor)
    weights = _Weights(files, config, tensors)
    pooling = _pooling(files, config, kind, pooling)
    classifier = None if pooling == "mean" else _classifier(weights, kind, pooling, head)
    model, head_name = classifier or (_encoder(weights), None)
    model_weights.check_finite(files.source, model)
    limit = tokenizing.NO_LIMIT
    if kind == "text":
        tokenizing.agree(files.source, model, processor)
        limit = tokenizing.length_limit(files.source, model, processor)
    return Opened(kind, processor, model, head_name, model_weights.main_dtype(tensors), limit)


def _kind(source: str, config: Any) -> Kind:
    if config.model_type in modeling_auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES:
        return "image"
    if config.model_type in modeling_auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES:
        return "text"
    raise BackboneError(
        f"`{source}` is a `{config.model_type}`, for which transformers has no classification model."
    )


def _pooling(files: ModelFiles, config: Any, kind: Kind, pooling: str) -> str:
    if kind == "image":
        if pooling == "mean":
            raise BackboneError(
                "`pooling='mean'` is for texts. Use `stock` or `auto` with an image model."
            )
        return "stock"
    if _has_own_encoder(config):
        if pooling == "stock":
            raise BackboneError(
                f"`{files.source}` is a `{config.model_type}`: texts are read by its encoder, whose states are "
                "averaged, and its decoder is left out. Use `pooling='mean'` or `'auto'`."
            )
        return "mean"
    made_by_sentence_transformers = (files.folder / MODULES).is_file()
    return "mean" if pooling == "auto" and made_by_sentence_transformers else pooling


def _has_own_encoder(config: Any) -> bool:
    """Whether a model has encoder and decoder, the encoder of which is a model by itself: T5's family."""
    return (
        bool(config.is_encoder_decoder)
        and config.model_type in modeling_auto.MODEL_FOR_TEXT_ENCODING_MAPPING_NAMES
    )


def _check_pixels(source: str, processor: Any) -> None:
    for name in ("size", "crop_size", "pad_size"):
        size = getattr(processor, name, None) or {}
        for edge in EDGES:
            number = size.get(edge) if isinstance(size, Mapping) else getattr(size, edge, None)
            if number is not None and not 1 <= number <= MOST_PIXELS:
                raise BackboneError(
                    f"The `preprocessor_config.json` of `{source}`: `{name}` is {size}, but images have from 1 to "
                    f"{MOST_PIXELS} pixels a side."
                )


# -- weights


@dataclass(frozen=True)
class _Weights:
    """What a model is made of: its files, its configuration, and what is known of its tensors."""

    files: ModelFiles
    config: Any
    tensors: Mapping[str, Stored]

    def read_by(self, auto: Any) -> tuple[Any, list[str]]:
        """Make a model, and list the parameters that are not in the files, or there in another shape."""
        source = self.files.source
        model_weights.skeleton(
            source, lambda: auto.from_config(self.config, trust_remote_code=False), self.tensors
        )
        model, info = auto.from_pretrained(
            self.files.folder,
            config=self.config,
            dtype=torch.float32,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # for a stored head; other layers are refused below
            weights_only=True,
            **NOTHING_ELSE,
        )
        failed = [*info.get("error_msgs", ()), *dict(info.get("conversion_errors") or {}).values()]
        if failed:
            raise BackboneError(
                f"The weights of `{source}` do not fit its `config.json`: {str(failed[0])[:300]}."
            )
        return model, sorted({*info["missing_keys"], *(key for key, *_ in info["mismatched_keys"])})


def _classifier(
    weights: _Weights, kind: Kind, pooling: str, head: str | None
) -> tuple[Any, str] | None:
    """The model with a head, and the head's name; by `auto` none if a layer between encoder and head is untrained."""
    auto = transformers.AutoModelForImageClassification
    if kind == "text":
        auto = transformers.AutoModelForSequenceClassification
    source = weights.files.source
    model, missing = weights.read_by(auto)
    name = head or _find_head(model)
    untrained = [key for key in missing if not key.startswith(f"{name}.")]
    encoder = f"{model.base_model_prefix}."
    may_be_untrained = [
        key
        for key in untrained
        if kind == "text" and (_is_pooler(key) or not key.startswith(encoder))
    ]
    _refuse(source, [key for key in untrained if key not in may_be_untrained])
    if not untrained:
        return model, name
    if pooling == "stock":
        raise BackboneError(
            f"`{source}` has no trained weights for {untrained[:3]}, on which the feature would stand. "
            "Use `pooling='mean'` or `'auto'`."
        )
    return None


def _encoder(weights: _Weights) -> Any:
    """The model without any head."""
    has_own = _has_own_encoder(weights.config)
    auto = transformers.AutoModelForTextEncoding if has_own else transformers.AutoModel
    model, missing = weights.read_by(auto)
    _refuse(weights.files.source, [key for key in missing if not _is_pooler(key)])
    for key in missing:  # a pooler, which is not used: an export has the same bytes each time
        nn.init.zeros_(model.get_parameter(key))
    return model


def _is_pooler(name: str) -> bool:
    return "pooler" in name.split(".")


def _refuse(source: str, missing: list[str]) -> None:
    if missing:
        shown = ", ".join(f"`{name}`" for name in missing[:3])
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise BackboneError(
            f"The weight files of `{source}` have no {shown}{more} of the shape that `config.json` says: the model "
            "would be made up at random there. Give a complete checkpoint."
        )


def _find_head(model: Any) -> str:
    """The last linear layer outside the encoder that gives as many outputs as there are labels."""
    linear = [
        (name, module) for name, module in model.named_modules() if isinstance(module, nn.Linear)
    ]
    inside = f"{model.base_model_prefix}."
    found = [
        name
        for name, module in linear
        if not name.startswith(inside) and module.out_features == model.config.num_labels
    ]
    if not found:
        outside = [name for name, _ in linear if not name.startswith(inside)]
        raise BackboneError(
            f"The head of `{type(model).__name__}` was not found. Give its last linear layer as `head=…`; outside the "
            f"encoder there are: {outside or 'none'}."
        )
    return found[-1]


def take_head(model: Any, name: str) -> nn.Linear:
    """Replace the head by an identity, so that the model returns its input; return the head."""
    parent, _, child = name.rpartition(".")
    try:
        owner = model.get_submodule(parent)
        layer = owner.get_submodule(child)
    except AttributeError:
        layer = None
    if not isinstance(layer, nn.Linear):
        raise BackboneError(f"`head={name}` is no linear layer of `{type(model).__name__}`.")
    setattr(owner, child, nn.Identity())
    return layer


@contextlib.contextmanager
def stored_as(model: nn.Module, dtype: torch.dtype) -> Iterator[None]:
    """The model with its values in another type while the block runs; afterwards they are as they were, bit for bit."""
    values = [
        value for value in (*model.parameters(), *model.buffers()) if value.is_floating_point()
    ]
    before = [value.data for value in values]
    try:
        for value in values:
            value.data = value.data.to(dtype)
        yield
    finally:
        for value, kept in zip(values, before, strict=True):
            value.data = kept
