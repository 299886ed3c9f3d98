"""Load a tokenizer and make it consistent with its model.

They must agree on padding, on the attention mask, on the vocabulary and on the maximum length.
"""

import inspect
from typing import cast

from torch import nn
from transformers import AutoTokenizer, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from perdure.errors import BackboneError
from perdure.models.model_files import ModelFiles

# A number of positions or tokens above this, or below 1, means that there is no limit.
NO_LIMIT = 10**6


def load(files: ModelFiles, config: PreTrainedConfig) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a model.

    Raises
    ------
    BackboneError
        The tokenizer has no vocabulary.
    """
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
        files.folder,
        config=config,
        trust_remote_code=False,
        local_files_only=True,
    )
    # If its files are missing, transformers makes a tokenizer that knows only the special tokens.
    if len(tokenizer) <= len(tokenizer.all_special_ids):
        raise BackboneError(
            f"The tokenizer of `{files.source}` has no vocabulary: its files are missing or "
            "damaged."
        )
    # Texts are padded later, in batches; this silences the warning that one step would be faster.
    tokenizer.deprecation_warnings["Asking-to-pad-a-fast-tokenizer"] = True
    return tokenizer


def give_padding(source: str, config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase) -> None:
    """Set a padding token in both the tokenizer and the configuration.

    If neither of them has one, the end-of-text token is used.

    Raises
    ------
    BackboneError
        There is no padding token and no end-of-text token.
    """
    text_config = config.get_text_config()
    padding = text_config.pad_token_id
    if type(padding) is not int or not 0 <= padding < text_config.vocab_size:
        padding = None  # some configurations say -1 for none
    if tokenizer.pad_token_id is None:
        if padding is not None and padding < len(tokenizer):
            tokenizer.pad_token = tokenizer.convert_ids_to_tokens(padding)
        else:
            tokenizer.pad_token = tokenizer.eos_token
    if tokenizer.pad_token_id is None:
        raise BackboneError(
            f"The tokenizer of `{source}` has no padding token and no end-of-text token, so texts "
            "of different lengths cannot be read together. Set `pad_token` in its "
            "`tokenizer_config.json`."
        )
    text_config.pad_token_id = tokenizer.pad_token_id if padding is None else padding


def agree(source: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Make a tokenizer and a model use the same padding token and the same inputs.

    If their padding tokens differ, the tokenizer's is normally used. The exceptions are
    models whose positions begin after the id of the padding token (the RoBERTa family).
    They were trained with the id in their configuration, so that one is used.

    Raises
    ------
    BackboneError
        The model takes no attention mask, or it has no embedding for some of the tokens.
    """
    config = model.config.get_text_config()
    if tokenizer.pad_token_id != config.pad_token_id:
        if reserved_positions(model) and config.pad_token_id < len(tokenizer):
            tokenizer.pad_token = tokenizer.convert_ids_to_tokens(config.pad_token_id)
        config.pad_token_id = tokenizer.pad_token_id
    # Padding on the left would shift the positions of a text. XLNet, however, reads the
    # last position even if it is padding.
    reads_last = getattr(config, "summary_type", None) == "last"
    tokenizer.padding_side = "left" if reads_last else "right"
    arguments = inspect.signature(model.forward).parameters
    if "attention_mask" not in arguments:
        raise BackboneError(
            f"`{source}` is a `{type(model).__name__}`, which takes no attention mask: its answer "
            "to a text would depend on the other texts in the batch. Choose another model."
        )
    # Some tokenizers return more than the model takes, and some leave the mask out.
    names = dict.fromkeys([*tokenizer.model_input_names, "attention_mask"])
    tokenizer.model_input_names = [name for name in names if name in arguments]
    _check_vocabulary(source, model, tokenizer)


def _check_vocabulary(
    source: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    embeddings = model.get_input_embeddings()
    assert isinstance(embeddings, nn.Embedding)
    rows = embeddings.num_embeddings
    # A few models have a special token for images that has no embedding. No text contains it.
    special = set(tokenizer.all_special_tokens)
    beyond: dict[str, int] = {}
    for token, number in tokenizer.get_vocab().items():
        if number >= rows and token not in special:
            beyond[token] = number
    padding = tokenizer.pad_token_id
    assert isinstance(padding, int)  # ensured by `give_padding` and `agree`
    if beyond or padding >= rows:
        padding_token = cast(str, tokenizer.pad_token)
        token = min(beyond, key=beyond.__getitem__, default=padding_token)
        number = tokenizer.convert_tokens_to_ids(token)
        raise BackboneError(
            f"The tokenizer of `{source}` has tokens for which the model has no embedding: "
            f"{token!r} has the id {number}, but there are {rows} embeddings. Do the tokenizer and "
            "the model belong together?"
        )


def reserved_positions(model: nn.Module) -> int:
    """Return the number of initial positions that no text uses.

    In the RoBERTa family, the first position used is the one after the id of the padding token.
    """
    for name, module in model.named_modules():
        padding = getattr(module, "padding_idx", None)
        if name.rpartition(".")[2] == "position_embeddings" and padding is not None:
            return padding + 1
    return 0


def length_limit(
    source: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None
) -> int:
    """Return the maximum length in tokens that both the tokenizer and the model allow for a text.

    Models with relative positions do not limit the length.

    Raises
    ------
    BackboneError
        Fewer than three tokens are allowed.
    """
    positions = _limit(getattr(model.config, "max_position_embeddings", None))
    usable = positions - reserved_positions(model)
    limit = min(usable, _limit(getattr(tokenizer, "model_max_length", None)))
    # Two special tokens, and one token of the text.
    if limit < 3:
        raise BackboneError(
            f"`{source}` reads texts of at most {limit} tokens, which is too few for any text."
        )
    return limit


def _limit(number: object) -> int:
    if isinstance(number, int | float) and 1 <= number < NO_LIMIT:
        return int(number)
    return NO_LIMIT
