"""The tables with a row for each token: those that are tied, and those that were resized.

In many language models the table of the input's embeddings is also the weight of the output layer
(`tie_word_embeddings`). Where adapters changed only one of the two, the merged model has both.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from perdure.checkpoints.base import Checkpoint
from perdure.checkpoints.fit import Fitted, agreed
from perdure.checkpoints.skeleton import Skeleton
from perdure.errors import CheckpointError, InputError

# The ends of the names of architectures that are language models.
LANGUAGE_MODELS = (
    "ForCausalLM",
    "LMHeadModel",
    "LMHead",
    "ForMaskedLM",
    "ForConditionalGeneration",
    "ForPreTraining",
    "EncoderDecoderModel",
)


@dataclass(frozen=True)
class Tables:
    """The decisions about the base's tables.

    Attributes
    ----------
    adapters
        The adapters that are merged, without changes that repeat another.
    saved
        The tensors taken whole from adapters.
    grown
        Tables with another number of rows than the base's, to which the adapters' changes are
        added.
    copies
        New tensors, each by the tensor of the base that it begins as.
    untied
        Whether the output layer is no longer the input's table.
    size
        The number of rows, if it differs from the base's.
    owner
        The adapter that the number of rows is taken from.
    """

    adapters: Sequence[Fitted]
    saved: Mapping[str, Tensor]
    grown: Mapping[str, Tensor] = field(default_factory=dict)
    copies: Mapping[str, str] = field(default_factory=dict)
    untied: bool = False
    size: int | None = None
    owner: Fitted | None = None


def arrange(
    skeleton: Skeleton, adapters: Sequence[Fitted], saved: Mapping[str, Tensor], choice: str | None
) -> Tables:
    """Decide what happens to the tables.

    Parameters
    ----------
    choice
        The adapter whose tables are taken; `none`: the base keeps its own; by default all of
        them, if none differ.

    Raises
    ------
    CheckpointError
        A change of a tied table cannot be kept apart, or tables would have different numbers of
        rows.
    InputError
        Several adapters have different tables, and no choice is given.
    """
    refusal = (
        "The adapters have resized `{}` in different ways, and one model can hold one vocabulary."
    )
    grown_by = {adapter.name: adapter.grown for adapter in adapters}
    grown = agreed(grown_by, refusal, choice)
    tables = Tables(adapters, dict(saved), grown)
    touched = {*saved, *grown}
    for adapter in adapters:
        touched |= {weight.tensor for weight in adapter.weights.values()}
    if any(_may_be_tied(skeleton.base, tensor) for tensor in touched):
        tables = _untie(skeleton, tables, touched)
    return _resize(skeleton, tables)


# -- tied tables


def _may_be_tied(base: Checkpoint, tensor: str) -> bool:
    """Return whether to ask transformers about a tensor, which takes seconds.

    The reason is a table of a language model, or a tensor that may be a tied output layer.
    """
    architectures = base.config.get("architectures")
    architecture = ""
    if isinstance(architectures, list) and architectures:
        architecture = str(architectures[0])
    # Tables lie outside the blocks, whose layers have a number in their names.
    is_in_block = _has_number(tensor)
    if is_in_block or not architecture.endswith(LANGUAGE_MODELS):
        return False
    config = _text_config(base)
    if config.get("tie_word_embeddings") is False:
        return False
    if tensor not in base.where:
        return True
    shape = base.stored(tensor).shape
    return len(shape) == 2 and shape[0] == config.get("vocab_size")


def _untie(skeleton: Skeleton, tables: Tables, touched: set[str]) -> Tables:
    """Separate two tied tables, if adapters changed one of them."""
    if skeleton.model is None:
        _refuse_unknown(skeleton.base, touched)
        return tables
    pairs = [pair for pair in skeleton.ties.items() if pair[0].endswith(".weight")]
    touched_pairs = [pair for pair in pairs if touched.intersection(pair)]
    if not touched_pairs:
        return tables
    output, table = touched_pairs[0]
    if len(pairs) > 1 or skeleton.base.config.get("is_encoder_decoder"):
        # T5 scales its outputs where the tables are tied, and three tables are one.
        raise _cannot_untie(skeleton.base, output)

    grown = dict(tables.grown)
    if output in grown:
        # It is the same table under its other name.
        value = grown.pop(output)
        grown.setdefault(table, value)
    saved = dict(tables.saved)
    trained = [adapter for adapter in tables.adapters if table in adapter.saved]
    if table in saved and any(map(_ties, trained)):
        # peft writes a table that it keeps tied under one of its names only.
        saved.setdefault(output, saved[table])

    changing = [adapter for adapter in tables.adapters if _changes(adapter, {output, table})]
    if not changing and output not in saved and table not in saved:
        return replace(tables, grown=grown)
    trained_as_one = all(map(_ties, changing))
    saved_alike = _are_alike(saved.get(output), saved.get(table))
    if trained_as_one and saved_alike:
        # What was done to one of the tables was done to the other, and must count once.
        saved.pop(output, None)
        adapters = [_without(adapter, output) for adapter in tables.adapters]
        return replace(
            tables,
            adapters=adapters,
            saved=saved,
            grown=grown,
        )
    return _as_two(skeleton, replace(tables, saved=saved, grown=grown))


def _as_two(skeleton: Skeleton, tables: Tables) -> Tables:
    """Give the output layer its own table, which begins as a copy of the input's."""
    copies: dict[str, str] = {}
    grown = dict(tables.grown)
    # Not only weights: a bias of the output layer is tied with its weight.
    for name, other in skeleton.ties.items():
        if name in tables.saved or name in skeleton.base.where:
            continue
        if other in grown:
            grown[name] = grown[other]
        else:
            copies[name] = other
    return replace(tables, grown=grown, copies=copies, untied=True)


def _ties(adapter: Fitted) -> bool:
    """Return whether the adapter trained both tables as one."""
    return bool(adapter.folder.config.get("ensure_weight_tying"))


def _changes(adapter: Fitted, tensors: set[str]) -> bool:
    return any(weight.tensor in tensors for weight in adapter.weights.values())


def _are_alike(left: Tensor | None, right: Tensor | None) -> bool:
    if left is None or right is None:
        return left is right
    return torch.equal(left, right.to(left))


def _without(adapter: Fitted, tensor: str) -> Fitted:
    """Return an adapter without the change of one tensor."""
    factors = dict(adapter.factors)
    for layer in adapter.factors:
        if adapter.weights[layer].tensor == tensor:
            del factors[layer]
    return replace(adapter, factors=factors)


def _refuse_unknown(base: Checkpoint, touched: set[str]) -> None:
    """Refuse a table that may be tied, in a model that transformers does not know."""
    stated = _text_config(base).get("tie_word_embeddings")
    for tensor in touched:
        if tensor not in base.where or not _may_be_tied(base, tensor):
            continue
        # Without a second table of its shape the model may use this one for both.
        shape = base.stored(tensor).shape
        shapes = [base.stored(other).shape for other in base.where]
        is_alone = shapes.count(shape) == 1
        if stated or is_alone:
            raise _cannot_untie(base, tensor)


def _cannot_untie(base: Checkpoint, tensor: str) -> CheckpointError:
    return CheckpointError(
        f"`{tensor}` is changed by an adapter, and `{base.folder}` uses it both for its input and "
        "for its output (`tie_word_embeddings`). The adapter changed one of them, and this model "
        "cannot hold both: it cannot be merged."
    )


# -- resized tables


def _resize(skeleton: Skeleton, tables: Tables) -> Tables:
    """Check that all tables have the same number of rows, and note it if it is not the base's."""
    base = skeleton.base
    resized = set(tables.grown)
    for tensor, value in tables.saved.items():
        if _has_other_rows(base, tensor, value):
            resized.add(tensor)
    _check_rows(base, tables)
    if not resized:
        return tables

    owner = next(
        adapter for adapter in tables.adapters if resized & {*adapter.grown, *adapter.saved}
    )
    rows: dict[str, int] = {}
    for tensor in sorted(skeleton.tables | set(tables.grown)):
        count = _rows(base, tables, skeleton.ties.get(tensor, tensor))
        if count is not None:
            rows[tensor] = count
    sizes = set(rows.values())
    if len(sizes) != 1 or not skeleton.tables:
        listed = ", ".join(f"`{tensor}` {count}" for tensor, count in rows.items())
        raise CheckpointError(
            f"`{owner.folder.folder}` has resized the vocabulary of `{base.folder}`, and the "
            "tables of the merged model would have different numbers of rows: "
            f"{listed or 'transformers does not know which they are'}. It cannot be merged."
        )
    return replace(tables, size=sizes.pop(), owner=owner)


def _has_other_rows(base: Checkpoint, tensor: str, value: Tensor) -> bool:
    """Return whether a tensor taken whole is a table with another number of rows."""
    if tensor not in base.where or _has_number(tensor):
        return False
    stored = base.stored(tensor).shape
    shape = tuple(value.shape)
    is_table = stored[:1] == (_text_config(base).get("vocab_size"),)
    has_other_rows = stored[:1] != shape[:1]
    has_same_columns = stored[1:] == shape[1:]
    return is_table and has_other_rows and has_same_columns


def _has_number(tensor: str) -> bool:
    return any(name.isdigit() for name in tensor.split("."))


def _rows(base: Checkpoint, tables: Tables, tensor: str) -> int | None:
    """Return the number of rows of a table in the merged model; None if it has no such table."""
    value = tables.saved.get(tensor, tables.grown.get(tensor))
    if value is not None:
        return len(value)
    source = tables.copies.get(tensor, tensor)
    if source not in base.where:
        return None
    return base.stored(source).shape[0]


def _check_rows(base: Checkpoint, tables: Tables) -> None:
    """Check that each change of a resized table has its shape."""
    resized = set(tables.grown)
    for adapter in tables.adapters:
        resized.update(adapter.grown)
    for adapter in tables.adapters:
        for layer, factors in adapter.factors.items():
            tensor = adapter.weights[layer].tensor
            if tensor not in resized:
                continue
            changed = factors.shape[0]
            rows = _rows(base, tables, tensor)
            if rows != changed:
                raise InputError(
                    f"`{adapter.name}` changes the {changed} rows of `{tensor}`, and the merged "
                    f"model would have {rows}: adapters resized the vocabulary in different ways. "
                    f"Take its tables with `--saved-modules {adapter.name}`, or merge without it."
                )


def _text_config(base: Checkpoint) -> dict[str, object]:
    """Return the configuration, with the inner text model's settings filled in if it lacks them."""
    nested = base.config.get("text_config")
    settings = dict(nested) if isinstance(nested, dict) else {}
    settings.update(base.config)
    return settings
