"""A tokenizer that agrees with its model: on padding, on what is masked, on the vocabulary, and on the longest text."""

import inspect
from typing import Any

from transformers import AutoTokenizer, PreTrainedConfig

from perdure.errors import BackboneError
from perdure.models.model_files import ModelFiles

NO_LIMIT = 10**6
"""Of positions or tokens: what is above it, or below 1, is how files say that there is no limit."""


def load(files: ModelFiles, config: PreTrainedConfig) -> Any:
    """The tokenizer of a model.

    Raises
    ------
    BackboneError
        It has no vocabulary.
    """
    tokenizer: Any = AutoTokenizer.from_pretrained(
        files.folder, config=config, trust_remote_code=False, local_files_only=True
    )
    if len(tokenizer) <= len(tokenizer.all_special_ids):
        raise BackboneError(
            f"The tokenizer of `{files.source}` has no vocabulary: its files are missing or damaged."
        )
    # collating pads what was tokenized before; transformers advises against it because it is slower in one go
    tokenizer.deprecation_warnings["Asking-to-pad-a-fast-tokenizer"] = True
    return tokenizer


def give_padding(source: str, config: Any, tokenizer: Any) -> None:
    """See to it that both the tokenizer and the configuration have a token for padding, be it the end of a text.

    Raises
    ------
    BackboneError
        The tokenizer has neither.
    """
    text = config.get_text_config()
    in_config = text.pad_token_id
    if type(in_config) is not int or not 0 <= in_config < text.vocab_size:
        in_config = None  # some folders say -1 for none
    if tokenizer.pad_token_id is None:
        known = in_config is not None and in_config < len(tokenizer)
        tokenizer.pad_token = (
            tokenizer.convert_ids_to_tokens(in_config) if known else tokenizer.eos_token
        )
    if tokenizer.pad_token_id is None:
        raise BackboneError(
            f"The tokenizer of `{source}` has no padding token and no end-of-text token, so texts of different lengths "
            "cannot be read together. Set `pad_token` in its `tokenizer_config.json`."
        )
    text.pad_token_id = tokenizer.pad_token_id if in_config is None else in_config


def agree(source: str, model: Any, tokenizer: Any) -> None:
    """Let tokenizer and model name the same token for padding, and the tokenizer give what the model takes.

    Usually the tokenizer decides, for the model only looks for its token. Models whose positions begin behind the
    padding token's number (RoBERTa's family) were trained with the number in their configuration: there that decides.

    Raises
    ------
    BackboneError
        The model takes no mask, or the tokenizer has tokens for which the model has no embedding.
    """
    config = model.config.get_text_config()
    if tokenizer.pad_token_id != config.pad_token_id:
        if reserved_positions(model) and config.pad_token_id < len(tokenizer):
            tokenizer.pad_token = tokenizer.convert_ids_to_tokens(config.pad_token_id)
        config.pad_token_id = tokenizer.pad_token_id
    # Padding on the left would move the positions of a text. XLNet reads the last place, padding or not.
    tokenizer.padding_side = "left" if getattr(config, "summary_type", None) == "last" else "right"
    taken = inspect.signature(model.forward).parameters
    if "attention_mask" not in taken:
        raise BackboneError(
            f"`{source}` is a `{type(model).__name__}`, which takes no attention mask: its answer to a text would "
            "depend on the texts beside it. Choose another model."
        )
    names = dict.fromkeys([*tokenizer.model_input_names, "attention_mask"])
    tokenizer.model_input_names = [name for name in names if name in taken]
    _check_vocabulary(source, model, tokenizer)


def _check_vocabulary(source: str, model: Any, tokenizer: Any) -> None:
    rows = model.get_input_embeddings().num_embeddings
    special = set(
        tokenizer.all_special_tokens
    )  # a few models have one for images, which no text leads to
    without = {
        token: i for token, i in tokenizer.get_vocab().items() if i >= rows and token not in special
    }
    if without or tokenizer.pad_token_id >= rows:
        token = min(without, key=without.__getitem__, default=tokenizer.pad_token)
        raise BackboneError(
            f"The tokenizer of `{source}` has tokens for which the model has no embedding: {token!r} has the number "
            f"{tokenizer.convert_tokens_to_ids(token)}, but there are {rows} embeddings. Do they belong together?"
        )


def reserved_positions(model: Any) -> int:
    """The number of first positions that no text uses, because they come before and at the padding's own."""
    for name, module in model.named_modules():
        padding = getattr(module, "padding_idx", None)
        if name.rpartition(".")[2] == "position_embeddings" and padding is not None:
            return padding + 1
    return 0


def length_limit(source: str, model: Any, tokenizer: Any) -> int:
    """The longest text in tokens that tokenizer and model allow; relative positions have no limit.

    Raises
    ------
    BackboneError
        Not even three tokens are allowed.
    """
    positions = getattr(model.config, "max_position_embeddings", None)
    limit = min(_limit(positions) - reserved_positions(model), _limit(tokenizer.model_max_length))
    if limit < 3:
        raise BackboneError(
            f"`{source}` reads texts of at most {limit} tokens, which is too few for any text."
        )
    return limit


def _limit(number: Any) -> int:
    return int(number) if isinstance(number, int | float) and 1 <= number < NO_LIMIT else NO_LIMIT
