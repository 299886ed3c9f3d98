"""The token tables, which have one row per token and may be tied or resized.

In many language models, the input embeddings and the output layer share one table
(`tie_word_embeddings`). If adapters changed only one of the two, the merged model has two
tables.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from perdure.checkpoints.base import Checkpoint
from perdure.checkpoints.fit import Fitted, agreed
from perdure.checkpoints.skeleton import Skeleton
from perdure.errors import CheckpointError, InputError

# The suffixes of the architecture names of language models.
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
    """The token tables of a merged model, and the adapters to merge.

    Attributes
    ----------
    adapters
        The adapters to merge, without duplicate changes to tied tables.
    saved
        The fully trained tensors to copy from adapters.
    grown
        Tables with a different number of rows than in the base model, to which the
        changes from adapters are added.
    copies
        New tensors that start as copies, mapped to the names of the originals in the base model.
    untied
        True if the output layer and the input embeddings no longer share one table.
    size
        The number of rows if it differs from that of the base model, otherwise None.
    owner
        The adapter whose number of rows is used, if `size` is not None.
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
    """Decide how to merge the token tables.

    Parameters
    ----------
    choice
        The adapter whose tables to use, or `none` to use those of the base model. By
        default, use the tables of all adapters, which must not differ.

    Raises
    ------
    CheckpointError
        Tied tables would have to be separated, which is impossible for this model, or
        tables would have different numbers of rows.
    InputError
        Adapters have different tables, and no choice is given.
    """
    refusal = (
        "The adapters have resized `{}` in different ways, but a model can have only one "
        "vocabulary."
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
    """Return True if a tensor may be a token table or tied output layer of a language model.

    Only then is it worth building the model with transformers, which takes seconds.
    """
    architectures = base.config.get("architectures")
    architecture = ""
    if isinstance(architectures, list) and architectures:
        architecture = str(architectures[0])
    # Token tables are outside the blocks, in which the names of layers contain a number.
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
    """Separate two tied tables if adapters change them without keeping them tied."""
    if skeleton.model is None:
        _refuse_unknown(skeleton.base, touched)
        return tables
    pairs = [pair for pair in skeleton.ties.items() if pair[0].endswith(".weight")]
    touched_pairs = [pair for pair in pairs if touched.intersection(pair)]
    if not touched_pairs:
        return tables
    output, table = touched_pairs[0]
    if len(pairs) > 1 or skeleton.base.config.get("is_encoder_decoder"):
        # If T5's tables are tied, there are three of them, and it rescales its outputs.
        raise _cannot_untie(skeleton.base, output)

    grown = dict(tables.grown)
    if output in grown:
        # This is the same table under a different name.
        value = grown.pop(output)
        grown.setdefault(table, value)
    saved = dict(tables.saved)
    trained = [adapter for adapter in tables.adapters if table in adapter.saved]
    if table in saved and any(map(_ties, trained)):
        # peft writes a tied table under only one of its two names.
        saved.setdefault(output, saved[table])

    changing = [adapter for adapter in tables.adapters if _changes(adapter, {output, table})]
    if not changing and output not in saved and table not in saved:
        return replace(tables, grown=grown)
    trained_as_one = all(map(_ties, changing))
    saved_alike = _are_alike(saved.get(output), saved.get(table))
    if trained_as_one and saved_alike:
        # Both tables have the same change, which must count only once.
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
    """Add a separate table for the output layer, which starts as a copy of the input embeddings."""
    copies: dict[str, str] = {}
    grown = dict(tables.grown)
    # Do not consider only weights, because the bias of an output layer may also be tied.
    for name, other in skeleton.ties.items():
        if name in tables.saved or name in skeleton.base.where:
            continue
        if other in grown:
            grown[name] = grown[other]
        else:
            copies[name] = other
    return replace(tables, grown=grown, copies=copies, untied=True)


def _ties(adapter: Fitted) -> bool:
    """Return True if the two tables stayed tied while the adapter was trained."""
    return bool(adapter.folder.config.get("ensure_weight_tying"))


def _changes(adapter: Fitted, tensors: set[str]) -> bool:
    return any(weight.tensor in tensors for weight in adapter.weights.values())


def _are_alike(left: Tensor | None, right: Tensor | None) -> bool:
    if left is None or right is None:
        return left is right
    return torch.equal(left, right.to(left))


def _without(adapter: Fitted, tensor: str) -> Fitted:
    """Return a copy of an adapter without its change to one tensor."""
    factors = dict(adapter.factors)
    for layer in adapter.factors:
        if adapter.weights[layer].tensor == tensor:
            del factors[layer]
    return replace(adapter, factors=factors)


def _refuse_unknown(base: Checkpoint, touched: set[str]) -> None:
    """Raise if a table that may be tied is changed in a model that transformers does not know."""
    stated = _text_config(base).get("tie_word_embeddings")
    for tensor in touched:
        if tensor not in base.where or not _may_be_tied(base, tensor):
            continue
        # If no other tensor has this shape, the model may use the table for input and output.
        shape = base.stored(tensor).shape
        shapes = [base.stored(other).shape for other in base.where]
        is_alone = shapes.count(shape) == 1
        if stated or is_alone:
            raise _cannot_untie(base, tensor)


def _cannot_untie(base: Checkpoint, tensor: str) -> CheckpointError:
    return CheckpointError(
        f"`{tensor}` is changed by an adapter, and `{base.folder}` uses it for both its input and "
        "its output (`tie_word_embeddings`). The adapter changed only one of them, and they cannot "
        "be separated in this model, so the adapter cannot be merged."
    )


# -- resized tables


def _resize(skeleton: Skeleton, tables: Tables) -> Tables:
    """Check that all tables have the same number of rows; set `size` if they were resized."""
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
            f"{listed or 'transformers does not know which these are'}. It cannot be merged."
        )
    return replace(tables, size=sizes.pop(), owner=owner)


def _has_other_rows(base: Checkpoint, tensor: str, value: Tensor) -> bool:
    """Return True if a fully trained tensor is a token table with a different number of rows."""
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
    """Return the number of rows of a table in the merged model, or None if it has no such table."""
    value = tables.saved.get(tensor, tables.grown.get(tensor))
    if value is not None:
        return len(value)
    source = tables.copies.get(tensor, tensor)
    if source not in base.where:
        return None
    return base.stored(source).shape[0]


def _check_rows(base: Checkpoint, tables: Tables) -> None:
    """Check that each change to a resized table has the same number of rows as the table."""
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
                    f"`{adapter.name}` changes {changed} rows of `{tensor}`, but the merged "
                    f"model would have {rows}: adapters resized the vocabulary in different ways. "
                    f"Use its tables with `--saved-modules {adapter.name}`, or merge without it."
                )


def _text_config(base: Checkpoint) -> dict[str, object]:
    """Return the settings of the base model, supplemented by those of a nested text model."""
    nested = base.config.get("text_config")
    settings = dict(nested) if isinstance(nested, dict) else {}
    settings.update(base.config)
    return settings
