"""A tokenizer that agrees with its model.

They agree on padding, on what is masked, on the vocabulary, and on the longest text.
"""

import inspect
from typing import cast

from torch import nn
from transformers import AutoTokenizer, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from perdure.errors import BackboneError
from perdure.models.model_files import ModelFiles

# Files write that there is no limit as a number of positions or tokens above this, or below 1.
NO_LIMIT = 10**6


def load(files: ModelFiles, config: PreTrainedConfig) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a model.

    Raises
    ------
    BackboneError
        It has no vocabulary.
    """
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
        files.folder,
        config=config,
        trust_remote_code=False,
        local_files_only=True,
    )
    # Without its files transformers makes a tokenizer that knows the special tokens only.
    if len(tokenizer) <= len(tokenizer.all_special_ids):
        raise BackboneError(
            f"The tokenizer of `{files.source}` has no vocabulary: its files are missing or "
            "damaged."
        )
    # Batches pad what was tokenized before; transformers warns that one step would be faster.
    tokenizer.deprecation_warnings["Asking-to-pad-a-fast-tokenizer"] = True
    return tokenizer


def give_padding(source: str, config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase) -> None:
    """Give both the tokenizer and the configuration a token for padding.

    If there is none, the end-of-text token serves.

    Raises
    ------
    BackboneError
        The tokenizer has neither.
    """
    text_config = config.get_text_config()
    padding = text_config.pad_token_id
    if type(padding) is not int or not 0 <= padding < text_config.vocab_size:
        padding = None  # some folders say -1 for a missing one
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
    """Make tokenizer and model use the same padding token, and the tokenizer return what fits.

    Usually the tokenizer decides, because the model only looks for its token. Models whose
    positions begin after the padding token's id (RoBERTa's family) were trained with the id in
    their configuration, so there the configuration decides.

    Raises
    ------
    BackboneError
        The model takes no mask, or the tokenizer has tokens without an embedding in the model.
    """
    config = model.config.get_text_config()
    if tokenizer.pad_token_id != config.pad_token_id:
        if reserved_positions(model) and config.pad_token_id < len(tokenizer):
            tokenizer.pad_token = tokenizer.convert_ids_to_tokens(config.pad_token_id)
        config.pad_token_id = tokenizer.pad_token_id
    # Padding on the left would move the positions of a text. XLNet reads the last position,
    # padding or not.
    reads_last = getattr(config, "summary_type", None) == "last"
    tokenizer.padding_side = "left" if reads_last else "right"
    arguments = inspect.signature(model.forward).parameters
    if "attention_mask" not in arguments:
        raise BackboneError(
            f"`{source}` is a `{type(model).__name__}`, which takes no attention mask: its answer "
            "to a text would depend on the texts beside it. Choose another model."
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
    # A few models have a special token for images without an embedding, which no text contains.
    special = set(tokenizer.all_special_tokens)
    beyond: dict[str, int] = {}
    for token, number in tokenizer.get_vocab().items():
        if number >= rows and token not in special:
            beyond[token] = number
    padding = tokenizer.pad_token_id
    assert isinstance(padding, int)  # `give_padding` and `agree` have seen to it
    if beyond or padding >= rows:
        padding_token = cast(str, tokenizer.pad_token)
        token = min(beyond, key=beyond.__getitem__, default=padding_token)
        number = tokenizer.convert_tokens_to_ids(token)
        raise BackboneError(
            f"The tokenizer of `{source}` has tokens for which the model has no embedding: "
            f"{token!r} has the number {number}, but there are {rows} embeddings. Do they belong "
            "together?"
        )


def reserved_positions(model: nn.Module) -> int:
    """Return the number of initial positions that no text uses.

    RoBERTa's family counts positions from after the padding token's id.
    """
    for name, module in model.named_modules():
        padding = getattr(module, "padding_idx", None)
        if name.rpartition(".")[2] == "position_embeddings" and padding is not None:
            return padding + 1
    return 0


def length_limit(
    source: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None
) -> int:
    """Return the length in tokens of the longest text that both tokenizer and model allow.

    Models with relative positions have no limit.

    Raises
    ------
    BackboneError
        Not even three tokens are allowed.
    """
    positions = _limit(getattr(model.config, "max_position_embeddings", None))
    usable = positions - reserved_positions(model)
    limit = min(usable, _limit(getattr(tokenizer, "model_max_length", None)))
    # Two special tokens, and one of the text.
    if limit < 3:
        raise BackboneError(
            f"`{source}` reads texts of at most {limit} tokens, which is too few for any text."
        )
    return limit


def _limit(number: object) -> int:
    if isinstance(number, int | float) and 1 <= number < NO_LIMIT:
        return int(number)
    return NO_LIMIT
