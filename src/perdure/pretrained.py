"""What is read of a pre-trained checkpoint: its kind, its processor, its model, and where its head is."""

import contextlib
from collections.abc import Iterator
from typing import Any, Literal

import torch
import transformers
from safetensors import SafetensorError
from torch import nn
from transformers.models.auto import modeling_auto
from transformers.utils.hub import cached_file

from perdure.errors import BackboneError


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Without transformers' progress bars and its advice to train a head: we make our own."""
    verbosity, bars = transformers.logging.get_verbosity(), transformers.logging.is_progress_bar_enabled()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers.logging.set_verbosity(verbosity)
        if bars:
            transformers.logging.enable_progress_bar()


@contextlib.contextmanager
def loading(path: str) -> Iterator[None]:
    """Whatever goes wrong in transformers while a checkpoint is loaded, as one sentence."""
    try:
        yield
    except (OSError, ValueError, SafetensorError) as error:
        raise BackboneError(
            f"No model could be loaded from `{path}`: give a folder with `config.json`, weights and processor, or a "
            f"hub id that can be reached. ({str(error).splitlines()[0]})"
        ) from error


def kind_and_processor(path: str) -> tuple[Literal["text", "image"], Any]:
    config = transformers.AutoConfig.from_pretrained(path)
    if config.model_type in modeling_auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES:
        return "image", transformers.AutoImageProcessor.from_pretrained(path)
    if config.model_type in modeling_auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES:
        tokenizer = transformers.AutoTokenizer.from_pretrained(path)
        if len(tokenizer) <= len(tokenizer.all_special_ids):
            raise OSError("its tokenizer has no vocabulary")
        # collating pads what was tokenized before; transformers advises against it because it is slower in one go
        tokenizer.deprecation_warnings["Asking-to-pad-a-fast-tokenizer"] = True
        return "text", tokenizer
    raise BackboneError(f"`{path}` is a `{config.model_type}`, for which transformers has no classification model.")


def made_by_sentence_transformers(path: str) -> bool:
    return bool(cached_file(path, "modules.json", _raise_exceptions_for_missing_entries=False))


def load_encoder(path: str) -> Any:
    """The model without any head."""
    return transformers.AutoModel.from_pretrained(path, dtype=torch.float32)


def load_stock(path: str, kind: str, pooling: str, head: str | None) -> tuple[Any, str | None]:
    """The classification model and the name of its head; nothing if the feature would come from untrained layers."""
    auto = (
        transformers.AutoModelForSequenceClassification
        if kind == "text"
        else transformers.AutoModelForImageClassification
    )
    model, info = auto.from_pretrained(path, dtype=torch.float32, output_loading_info=True)
    head = head or _find_head(model)
    untrained = sorted(name for name in info["missing_keys"] if not name.startswith(f"{head}."))
    if not untrained:
        return model, head
    if pooling == "stock" or kind == "image":
        raise BackboneError(
            f"`{path}` has no trained weights for {untrained[:3]}, on which the feature would stand. "
            + ("Use `pooling='mean'` or `'auto'`." if kind == "text" else "Give a complete checkpoint.")
        )
    return None, None


def _find_head(model: Any) -> str:
    """The last linear layer outside the encoder that gives as many outputs as there are labels."""
    linear = [(name, module) for name, module in model.named_modules() if isinstance(module, nn.Linear)]
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


def take_head(model: Any, name: str) -> int:
    """Replace the head by an identity, so that the model returns its input; return the width of that."""
    parent, _, child = name.rpartition(".")
    try:
        owner = model.get_submodule(parent)
        layer = owner.get_submodule(child)
    except AttributeError:
        layer = None
    if not isinstance(layer, nn.Linear):
        raise BackboneError(f"`head={name}` is no linear layer of `{type(model).__name__}`.")
    setattr(owner, child, nn.Identity())
    return layer.in_features


def length_limit(processor: Any, config: Any) -> int:
    """The longest text in tokens. Models of the RoBERTa family keep their first positions for padding."""
    positions = getattr(config, "max_position_embeddings", None) or 10**6
    reserved = config.pad_token_id + 1 if "roberta" in config.model_type and config.pad_token_id is not None else 0
    return min(processor.model_max_length, positions - reserved)
