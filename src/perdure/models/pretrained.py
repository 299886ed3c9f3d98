"""Open a pre-trained model: the only place where a folder becomes a model and its processor.

The files are checked before anything is built, and the model is compared with them afterwards. Code
from a model's folder is never run, and the user is never asked to allow it.
"""

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
import transformers
from torch import nn
from transformers import (
    BaseImageProcessor,
    BitsAndBytesConfig,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.models.auto import modeling_auto

from perdure.errors import BackboneError, PerdureError
from perdure.models import model_config, model_weights, quantised, tokenizing
from perdure.models.model_files import CONFIG, MODULES, ModelFiles
from perdure.models.model_weights import Stored

Kind = Literal["text", "image"]

# Pixels a side of the images that a processor makes; the largest in use have 1,024.
MOST_PIXELS = 4096
EDGES = ("height", "width", "shortest_edge", "longest_edge", "max_height", "max_width")

# Options with which transformers runs no code from the folder and reaches for no other file.
NOTHING_ELSE = {"trust_remote_code": False, "local_files_only": True}


@dataclass(frozen=True)
class Opened:
    """A model with its processor.

    Attributes
    ----------
    model
        The model with its head, or the encoder alone.
    head_name
        The name of that head; None for an encoder alone.
    dtype
        The data type of most of the stored weights. Computation is in single precision.
    limit
        The length in tokens of the longest text.
    """

    kind: Kind
    processor: Any
    model: PreTrainedModel
    head_name: str | None
    dtype: torch.dtype
    limit: int


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Silence transformers' progress bars, and its advice to train a head: perdure adds its own
    heads.
    """
    verbosity = transformers.logging.get_verbosity()
    bars = transformers.logging.is_progress_bar_enabled()
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
    """Turn any failure in transformers into a `BackboneError`.

    transformers may not notice that a file is damaged, and then raises errors of any class.
    """
    try:
        yield
    except PerdureError:
        raise
    except BaseException as error:
        # A panic of the tokenizers, which are written in Rust, is not even an `Exception`.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        why = " ".join(str(error).split())[:300]
        raise BackboneError(
            f"No model could be loaded from `{source}`: one of its files is missing or damaged, or "
            f"does not fit the others. ({type(error).__name__}: {why})"
        ) from error


def open_model(
    files: ModelFiles, pooling: str, head: str | None, *, outline: bool = False
) -> Opened:
    """Open a model for `pooling`: `stock` (with a head), `mean` (the encoder alone), or `auto`.

    Parameters
    ----------
    outline
        Make the model's shapes alone, on torch's `meta` device. It needs no weights, and no layer
        counts as untrained.

    Raises
    ------
    BackboneError
        A file is missing, damaged or absurd; the model is not one for classification; or weights
        are missing.
    """
    # From cheap to costly: nothing is built before all files have been checked.
    files.check()
    config = model_config.read(files)
    kind = _kind(files.source, config)
    weights = _weights(files, config, outline=outline)
    if kind == "text":
        processor = tokenizing.load(files, config)
        # Before the model is built: its embedding takes the padding token from `config`.
        tokenizing.give_padding(files.source, config, processor)
    else:
        processor = transformers.AutoImageProcessor.from_pretrained(files.folder, **NOTHING_ELSE)
        _check_pixels(files.source, processor)
    pooling = _pooling(files, config, kind, pooling)
    classifier = None
    if pooling != "mean":
        classifier = _classifier(weights, kind, pooling, head)
    if classifier is not None:
        model, head_name = classifier
    else:
        model = _encoder(weights)
        head_name = None
    model_weights.check_finite(files.source, model)
    limit = tokenizing.NO_LIMIT
    if kind == "text":
        tokenizing.agree(files.source, model, processor)
        limit = tokenizing.length_limit(files.source, model, processor)
    return Opened(
        kind=kind,
        processor=processor,
        model=model,
        head_name=head_name,
        dtype=model_weights.main_dtype(weights.tensors),
        limit=limit,
    )


def answers_with_text(files: ModelFiles) -> bool:
    """Return whether a checkpoint has the output layer of a language model."""
    files.check()
    return _language_class(model_config.read(files)) is not None


def _language_class(config: PreTrainedConfig) -> type | None:
    """Return the class of transformers that opens a checkpoint as a language model, if it is one.

    A configuration names the class that was saved: the same kind of transformer is saved as a
    classifier or as an encoder, too.
    """
    saved = (config.architectures or [None])[0]
    # By items: the mappings are typed by the kinds that transformers has now.
    opened_by = (config.model_type, saved)
    if opened_by in modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.items():
        return transformers.AutoModelForCausalLM
    if opened_by in modeling_auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES.items():
        return transformers.AutoModelForSeq2SeqLM
    return None


def open_language_model(
    files: ModelFiles, dtype: str = "float32", *, outline: bool = False
) -> Opened:
    """Open a checkpoint as a language model, whose output layer answers.

    Parameters
    ----------
    dtype
        The type of the weights in memory: `float32`, `bfloat16`, or `nf4` (4 bits). transformers
        leaves those that need it in single precision.
    outline
        Make the model's shapes alone, on torch's `meta` device. It needs neither weights nor a
        tokenizer: without one, `processor` is None.

    Raises
    ------
    BackboneError
        A file is missing, damaged or absurd; weights are missing; nothing ends an answer; or
        bitsandbytes is not installed.
    """
    quantisation = None
    if dtype == quantised.NF4:
        quantisation = quantised.quantisation(files.source)
        dtype = "float32"
    files.check()
    config = model_config.read(files)
    weights = _weights(files, config, getattr(torch, dtype), quantisation, outline=outline)
    tokenizer = None
    if files.has_processor or not outline:
        tokenizer = tokenizing.load(files, config)
        tokenizing.give_padding(files.source, config, tokenizer)
    model, missing = weights.read_by(_language_class(config))
    quantised.prepare(model)
    _refuse(files.source, missing)
    model_weights.check_finite(files.source, model)
    if tokenizer is not None:
        tokenizing.agree(files.source, model, tokenizer)
    return Opened(
        kind="text",
        processor=tokenizer,
        model=model,
        head_name=None,
        dtype=model_weights.main_dtype(weights.tensors),
        limit=tokenizing.length_limit(files.source, model, tokenizer),
    )


def _kind(source: str, config: PreTrainedConfig) -> Kind:
    if config.model_type in modeling_auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES:
        return "image"
    if config.model_type in modeling_auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES:
        return "text"
    raise BackboneError(
        f"`{source}` is a `{config.model_type}`, for which transformers has no classification "
        "model."
    )


def _pooling(files: ModelFiles, config: PreTrainedConfig, kind: Kind, pooling: str) -> str:
    if kind == "image":
        if pooling == "mean":
            raise BackboneError(
                "`pooling='mean'` is for texts. Use `stock` or `auto` with an image model."
            )
        return "stock"
    if _has_own_encoder(config):
        if pooling == "stock":
            raise BackboneError(
                f"`{files.source}` is a `{config.model_type}`: texts are read by its encoder, "
                "whose states are averaged, and its decoder is left out. Use `pooling='mean'` or "
                "`'auto'`."
            )
        return "mean"
    made_by_sentence_transformers = (files.folder / MODULES).is_file()
    if pooling == "auto" and made_by_sentence_transformers:
        return "mean"
    return pooling


def _has_own_encoder(config: PreTrainedConfig) -> bool:
    """Return whether a model has encoder and decoder, and the encoder works alone: T5's family."""
    return (
        bool(config.is_encoder_decoder)
        and config.model_type in modeling_auto.MODEL_FOR_TEXT_ENCODING_MAPPING_NAMES
    )


def _check_pixels(source: str, processor: BaseImageProcessor) -> None:
    """Refuse a processor whose images would fill the memory."""
    for name in ("size", "crop_size", "pad_size"):
        size = getattr(processor, name, None) or {}
        for edge in EDGES:
            # A size is a mapping or transformers' `SizeDict`, by the processor's class.
            pixels = size.get(edge) if isinstance(size, Mapping) else getattr(size, edge, None)
            if pixels is not None and not 1 <= pixels <= MOST_PIXELS:
                raise BackboneError(
                    f"The `preprocessor_config.json` of `{source}`: `{name}` is {size}, but images "
                    f"have from 1 to {MOST_PIXELS} pixels a side."
                )


# -- weights


@dataclass(frozen=True)
class _Weights:
    """A model's files, its configuration, the shapes and types of its tensors, and its type.

    `quantisation` holds transformers' settings if its linear layers are to be loaded in 4 bits.
    """

    files: ModelFiles
    config: PreTrainedConfig
    tensors: Mapping[str, Stored]
    dtype: torch.dtype = torch.float32
    quantisation: BitsAndBytesConfig | None = None

    def read_by(self, auto: Any) -> tuple[PreTrainedModel, list[str]]:
        """Make a model, and list the parameters that are missing or have another shape.

        Parameters
        ----------
        auto
            One of the classes `AutoModel…` of transformers, which have no public base.
        """
        source = self.files.source
        model_weights.skeleton(
            source, lambda: auto.from_config(self.config, trust_remote_code=False), self.tensors
        )
        model, info = auto.from_pretrained(
            self.files.folder,
            config=self.config,
            dtype=self.dtype,
            quantization_config=self.quantisation,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # for a stored head; other layers are refused below
            weights_only=True,
            **NOTHING_ELSE,
        )
        conversion_errors = dict(info.get("conversion_errors") or {})
        errors = [*info.get("error_msgs", ()), *conversion_errors.values()]
        if errors:
            raise BackboneError(
                f"The weights of `{source}` do not fit its `config.json`: {str(errors[0])[:300]}."
            )
        mismatched = {key for key, *_ in info["mismatched_keys"]}
        return model, sorted(mismatched.union(info["missing_keys"]))


@dataclass(frozen=True)
class _Shapes(_Weights):
    """The same for a model of shapes alone, whose files may have no weights."""

    def read_by(self, auto: Any) -> tuple[PreTrainedModel, list[str]]:
        """Make a model on the `meta` device, where a tensor has a shape and takes no memory."""
        with torch.device("meta"):
            model = auto.from_config(self.config, dtype=self.dtype, trust_remote_code=False)
            self._untie(model)
        if self.quantisation:
            quantised.mark(model)
        return model.eval(), []

    def _untie(self, model: PreTrainedModel) -> None:
        """Give the output layer a weight of its own, if the checkpoint has one.

        transformers ties T5's output layer to the embedding, whatever the configuration says, until
        it sees a weight of that layer's own among the weights.
        """
        output: Any = model.get_output_embeddings()
        if output is None or output.weight is not model.get_input_embeddings().weight:
            return
        name = next(name for name, layer in model.named_modules() if layer is output)
        has_own = f"{name}.weight" in self.tensors
        if not self.tensors:
            has_own = self.files.read_json(CONFIG).get("tie_word_embeddings") is False
        if has_own:
            output.weight = nn.Parameter(torch.empty_like(output.weight), requires_grad=False)


def _weights(
    files: ModelFiles,
    config: PreTrainedConfig,
    dtype: torch.dtype = torch.float32,
    quantisation: BitsAndBytesConfig | None = None,
    *,
    outline: bool,
) -> _Weights:
    """Check the weight files, if there must be any, and return what makes the model."""
    tensors: Mapping[str, Stored] = {}
    if files.has_weights or not outline:
        files.check_weights()
        tensors = model_weights.stored(files)
    kind = _Shapes if outline else _Weights
    return kind(files, config, tensors, dtype, quantisation)


def _classifier(
    weights: _Weights, kind: Kind, pooling: str, head: str | None
) -> tuple[PreTrainedModel, str] | None:
    """Return the model with a head, and the head's name.

    With `auto` return None if a layer between encoder and head is untrained.
    """
    auto = transformers.AutoModelForImageClassification
    if kind == "text":
        auto = transformers.AutoModelForSequenceClassification
    source = weights.files.source
    model, missing = weights.read_by(auto)
    name = head or _find_head(model)
    # The head itself may be missing: every task gets its own.
    untrained = [key for key in missing if not key.startswith(f"{name}.")]
    encoder = f"{model.base_model_prefix}."
    needed = []
    for key in untrained:
        is_optional = _is_pooler(key) or not key.startswith(encoder)
        if kind == "image" or not is_optional:
            needed.append(key)
    _refuse(source, needed)
    if not untrained:
        return model, name
    if pooling == "stock":
        raise BackboneError(
            f"`{source}` has no trained weights for {untrained[:3]}, on which the feature would "
            "stand. Use `pooling='mean'` or `'auto'`."
        )
    return None


def _encoder(weights: _Weights) -> PreTrainedModel:
    """Return the model without any head."""
    # `AutoModel` would give T5's family a decoder, too.
    has_own = _has_own_encoder(weights.config)
    auto = transformers.AutoModelForTextEncoding if has_own else transformers.AutoModel
    model, missing = weights.read_by(auto)
    _refuse(weights.files.source, [key for key in missing if not _is_pooler(key)])
    # What is missing is an unused pooler: with zeros an export always has the same bytes.
    for key in missing:
        nn.init.zeros_(model.get_parameter(key))
    return model


def _is_pooler(name: str) -> bool:
    return "pooler" in name.split(".")


def _refuse(source: str, missing: list[str]) -> None:
    if missing:
        shown = ", ".join(f"`{name}`" for name in missing[:3])
        if len(missing) > 3:
            shown += f" and {len(missing) - 3} more"
        raise BackboneError(
            f"The weight files of `{source}` have no {shown} of the shape that `config.json` "
            "says: the model would have random values there. Give a complete checkpoint."
        )


def _find_head(model: PreTrainedModel) -> str:
    """Return the name of the last linear layer outside the encoder with one output per label."""
    encoder = f"{model.base_model_prefix}."
    outside = []
    candidates = []
    for name, module in model.named_modules():
        if not isinstance(module, nn.Linear) or name.startswith(encoder):
            continue
        outside.append(name)
        if module.out_features == model.config.num_labels:
            candidates.append(name)
    if not candidates:
        raise BackboneError(
            f"The head of `{type(model).__name__}` was not found. Give its last linear layer as "
            f"`head=…`; outside the encoder there are: {outside or 'none'}."
        )
    return candidates[-1]


def take_head(model: nn.Module, name: str) -> nn.Linear:
    """Replace the head by an identity, so that the model returns its input; return the head."""
    parent, _, child = name.rpartition(".")
    try:
        layer = model.get_submodule(name)
    except AttributeError:
        layer = None
    if not isinstance(layer, nn.Linear):
        raise BackboneError(f"`head={name}` is not a linear layer of `{type(model).__name__}`.")
    setattr(model.get_submodule(parent), child, nn.Identity())
    return layer


@contextlib.contextmanager
def stored_as(model: nn.Module, dtype: torch.dtype) -> Iterator[None]:
    """Store the model's values in another type while the block runs.

    Afterwards they are as before, bit for bit.
    """
    tensors = [*model.parameters(), *model.buffers()]
    values = [value for value in tensors if value.is_floating_point()]
    # Kept rather than converted back, which would lose digits.
    before = [value.data for value in values]
    try:
        for value in values:
            value.data = value.data.to(dtype)
        yield
    finally:
        for value, original in zip(values, before, strict=True):
            value.data = original


def is_block(module: nn.Module) -> bool:
    """Return whether a module is a block of the transformer, which may be computed again."""
    return isinstance(module, GradientCheckpointingLayer)
