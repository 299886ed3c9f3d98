"""Load a pre-trained model and its processor from a folder. No other module does this.

The files are checked before anything is built, and the model is compared with them
afterwards. Code from a model's folder is never run, and the user is never asked to allow
it.
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

# The maximum side of the images that a processor produces, in pixels; the largest in use is 1,024.
MOST_PIXELS = 4096
EDGES = ("height", "width", "shortest_edge", "longest_edge", "max_height", "max_width")

# Options that keep transformers from running code in the folder and from fetching other files.
NOTHING_ELSE = {"trust_remote_code": False, "local_files_only": True}


@dataclass(frozen=True)
class Opened:
    """A loaded model with its processor.

    Attributes
    ----------
    model
        The model with its head, or only the encoder.
    head_name
        The name of the head; None if `model` is only the encoder.
    dtype
        The most common data type of the stored weights; it may differ from that in memory.
    limit
        The maximum length of a text, in tokens.
    """

    kind: Kind
    processor: Any
    model: PreTrainedModel
    head_name: str | None
    dtype: torch.dtype
    limit: int


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Silence transformers' progress bars and warnings while the block runs.

    One of the warnings advises training a new head, which perdure does anyway.
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
    """Convert any exception raised by transformers into a `BackboneError`.

    transformers may not notice that a file is damaged, and can then raise any kind of exception.
    """
    try:
        yield
    except PerdureError:
        raise
    except BaseException as error:
        # A panic in the tokenizers library, written in Rust, is not even an `Exception`.
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
    """Load a model as an encoder, to classify texts or images.

    Parameters
    ----------
    pooling
        `stock` loads the model with its head, `mean` without it; `auto` chooses between them.
    head
        The name of the head; None to find it.
    outline
        Create the model on torch's `meta` device, with shapes but no values. No weights
        are needed, and all layers count as trained.

    Raises
    ------
    BackboneError
        A file is missing, damaged or absurd; transformers has no classification model of
        this type; or weights are missing.
    """
    # Cheap checks come first: nothing is built before all files have been checked.
    files.check()
    config = model_config.read(files)
    kind = _kind(files.source, config)
    weights = _weights(files, config, outline=outline)
    if kind == "text":
        processor = tokenizing.load(files, config)
        # Before the model is built, because its embedding reads the padding token from `config`.
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
    """Return whether a checkpoint was saved as a language model, with its output layer."""
    files.check()
    return _language_class(model_config.read(files)) is not None


def _language_class(config: PreTrainedConfig) -> type | None:
    """Return the transformers class that loads a checkpoint as a language model.

    Return None if the configuration does not name a language model as the class that was
    saved. The same transformer could also have been saved as a classifier or as an
    encoder.
    """
    saved = (config.architectures or [None])[0]
    # Compare items, because type checkers accept only known model types as keys.
    opened_by = (config.model_type, saved)
    if opened_by in modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.items():
        return transformers.AutoModelForCausalLM
    if opened_by in modeling_auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES.items():
        return transformers.AutoModelForSeq2SeqLM
    return None


def open_language_model(
    files: ModelFiles, dtype: str = "float32", *, outline: bool = False
) -> Opened:
    """Load a checkpoint as a language model, with its output layer.

    Parameters
    ----------
    dtype
        The data type of the weights in memory: `float32`, `bfloat16`,
        `float16`, or `nf4` (4 bits).
        Weights that require single precision stay in `float32`.
    outline
        Create the model on torch's `meta` device, with shapes but no values. Neither
        weights nor a tokenizer are needed; without a tokenizer, `processor` is None.

    Raises
    ------
    BackboneError
        A file is missing, damaged or absurd; weights are missing; the tokenizer has no
        token to pad with; or bitsandbytes is not installed.
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
                f"`{files.source}` is a `{config.model_type}`: the last hidden states of its "
                "encoder are averaged, and its decoder is left out. Use `pooling='mean'` or "
                "`'auto'`."
            )
        return "mean"
    made_by_sentence_transformers = (files.folder / MODULES).is_file()
    if pooling == "auto" and made_by_sentence_transformers:
        return "mean"
    return pooling


def _has_own_encoder(config: PreTrainedConfig) -> bool:
    """Return whether a model's encoder can be used without its decoder, as in the T5 family."""
    return (
        bool(config.is_encoder_decoder)
        and config.model_type in modeling_auto.MODEL_FOR_TEXT_ENCODING_MAPPING_NAMES
    )


def _check_pixels(source: str, processor: BaseImageProcessor) -> None:
    """Reject a processor whose images would be too large for memory."""
    for name in ("size", "crop_size", "pad_size"):
        size = getattr(processor, name, None) or {}
        for edge in EDGES:
            # A size is a mapping or a transformers `SizeDict`, depending on the processor.
            pixels = size.get(edge) if isinstance(size, Mapping) else getattr(size, edge, None)
            if pixels is not None and not 1 <= pixels <= MOST_PIXELS:
                raise BackboneError(
                    f"The `preprocessor_config.json` of `{source}`: `{name}` is {size}, but images "
                    f"must have from 1 to {MOST_PIXELS} pixels a side."
                )


# -- weights


@dataclass(frozen=True)
class _Weights:
    """The files, the configuration and the stored tensors from which a model is built.

    `dtype` is the data type of the model in memory. If `quantisation` is given, it
    contains transformers' settings for loading linear layers in 4 bits.
    """

    files: ModelFiles
    config: PreTrainedConfig
    tensors: Mapping[str, Stored]
    dtype: torch.dtype = torch.float32
    quantisation: BitsAndBytesConfig | None = None

    def read_by(self, auto: Any) -> tuple[PreTrainedModel, list[str]]:
        """Load the model, and list the parameters that are missing or have a different shape.

        Parameters
        ----------
        auto
            One of transformers' `AutoModel…` classes, which have no public base class.
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
            ignore_mismatched_sizes=True,  # for a stored head; callers reject other mismatches
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
    """The same for a model without values, whose folder need not contain weights."""

    def read_by(self, auto: Any) -> tuple[PreTrainedModel, list[str]]:
        """Create a model on the `meta` device, where tensors have shapes but take no memory."""
        with torch.device("meta"):
            model = auto.from_config(self.config, dtype=self.dtype, trust_remote_code=False)
            self._untie(model)
        if self.quantisation:
            quantised.mark(model)
        return model.eval(), []

    def _untie(self, model: PreTrainedModel) -> None:
        """Separate the output layer from the embedding if the checkpoint has weights for both."""
        # transformers ties these layers of a T5 until it finds two weights in the checkpoint.
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
    """Check the weight files, which only an outline may lack; return what creates the model."""
    tensors: Mapping[str, Stored] = {}
    if files.has_weights or not outline:
        files.check_weights()
        tensors = model_weights.stored(files)
    kind = _Shapes if outline else _Weights
    return kind(files, config, tensors, dtype, quantisation)


def _classifier(
    weights: _Weights, kind: Kind, pooling: str, head: str | None
) -> tuple[PreTrainedModel, str] | None:
    """Return the model with a head, and the name of the head.

    If `pooling` is `auto`, return None when a layer between the encoder and the head is untrained.
    """
    auto = transformers.AutoModelForImageClassification
    if kind == "text":
        auto = transformers.AutoModelForSequenceClassification
    source = weights.files.source
    model, missing = weights.read_by(auto)
    name = head or _find_head(model)
    # The head itself may be missing, because each task gets a new one.
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
            "depend. Use `pooling='mean'` or `'auto'`."
        )
    return None


def _encoder(weights: _Weights) -> PreTrainedModel:
    """Return the model without a head."""
    # For the T5 family, `AutoModel` would load the decoder as well.
    has_own = _has_own_encoder(weights.config)
    auto = transformers.AutoModelForTextEncoding if has_own else transformers.AutoModel
    model, missing = weights.read_by(auto)
    _refuse(weights.files.source, [key for key in missing if not _is_pooler(key)])
    # Only an unused pooler can be missing. With zeros, an export always has the same bytes.
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
            "requires, so the model would have random values there. Give a complete checkpoint."
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
            f"`head=…`; the linear layers outside the encoder are: {outside or 'none'}."
        )
    return candidates[-1]


def take_head(model: nn.Module, name: str) -> nn.Linear:
    """Replace a model's head with an identity layer, and return the head.

    The model then returns the input of its head.

    Raises
    ------
    BackboneError
        There is no linear layer of this name.
    """
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
    """Convert a model's parameters and buffers to another data type while the block runs.

    Afterwards the original values are restored, bit for bit.
    """
    tensors = [*model.parameters(), *model.buffers()]
    values = [value for value in tensors if value.is_floating_point()]
    # Keep the originals: converting back would lose precision.
    before = [value.data for value in values]
    try:
        for value in values:
            value.data = value.data.to(dtype)
        yield
    finally:
        for value, original in zip(values, before, strict=True):
            value.data = original


def is_block(module: nn.Module) -> bool:
    """Return whether a module is a transformer block that supports gradient checkpointing."""
    return isinstance(module, GradientCheckpointingLayer)
