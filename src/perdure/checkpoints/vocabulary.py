"""The tables with a row for each token: two that are one and the same, and those that were resized.

In many language models the table of the input's embeddings is the output layer's weight as well
(`tie_word_embeddings`). Where adapters changed only one of the two, the merged model has both.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from perdure.checkpoints.base import Checkpoint
from perdure.checkpoints.fit import Fitted, agreed
from perdure.checkpoints.skeleton import Skeleton
from perdure.errors import CheckpointError, InputError

LANGUAGE_MODELS = (
    *(
        "ForCausalLM",
        "LMHeadModel",
        "LMHead",
        "ForMaskedLM",
        "ForConditionalGeneration",
        "ForPreTraining",
    ),
    "EncoderDecoderModel",
)


@dataclass(frozen=True)
class Tables:
    """What becomes of the base's tables.

    Attributes
    ----------
    adapters
        Those that are merged, without changes that are another's.
    saved
        The tensors taken whole from adapters.
    grown
        Tables of another number of rows than the base's, to which the adapters' changes are added.
    copies
        New tensors that begin as a copy of one of the base's.
    untied
        Whether the output layer is no longer the input's table.
    size
        The number of rows, where it is another than the base's.
    owner
        The adapter that it is taken from.
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
    """Decide what becomes of the tables.

    Parameters
    ----------
    choice
        The adapter whose tables are taken; `none`: the base keeps its own; by default all, if none differ.

    Raises
    ------
    CheckpointError
        A change of a tied table cannot be kept apart, or tables would have different numbers of rows.
    InputError
        Several adapters have different tables, and there was no choice.
    """
    refusal = (
        "The adapters have resized `{}` in different ways, and one model can hold one vocabulary."
    )
    grown = agreed({adapter.name: adapter.grown for adapter in adapters}, refusal, choice)
    tables = Tables(adapters, dict(saved), grown)
    touched = {weight.tensor for adapter in adapters for weight in adapter.weights.values()}
    touched |= {*saved, *tables.grown}
    if any(_may_be_tied(skeleton.base, tensor) for tensor in touched):
        tables = _part(skeleton, tables, touched)
    return _resize(skeleton, tables)


# -- tied tables


def _may_be_tied(base: Checkpoint, tensor: str) -> bool:
    """Whether to ask transformers: a table of a language model, or what might be an output layer that is tied."""
    config = _text_config(base)
    architectures = base.config.get("architectures")
    named = architectures[0] if isinstance(architectures, list) and architectures else ""
    if any(part.isdigit() for part in tensor.split(".")) or not str(named).endswith(
        LANGUAGE_MODELS
    ):
        return False
    if config.get("tie_word_embeddings") is False:
        return False
    if tensor not in base.where:
        return True
    shape = base.stored(tensor).shape
    return len(shape) == 2 and shape[0] == config.get("vocab_size")


def _part(skeleton: Skeleton, tables: Tables, touched: set[str]) -> Tables:
    """Part two tied tables, if adapters changed one of them."""
    if skeleton.model is None:
        _refuse_unknown(skeleton.base, touched)
        return tables
    pairs = {name: other for name, other in skeleton.ties.items() if name.endswith(".weight")}
    touched_pairs = {
        name: other for name, other in pairs.items() if name in touched or other in touched
    }
    if not touched_pairs:
        return tables
    if len(pairs) > 1 or skeleton.base.config.get("is_encoder_decoder"):
        # T5 scales its outputs where the tables are tied, and three tables are one
        raise _cannot_part(skeleton.base, next(iter(touched_pairs)))
    output, table = next(iter(pairs.items()))
    saved, grown = dict(tables.saved), dict(tables.grown)
    if output in grown:  # the same table, under its other name
        grown.setdefault(table, grown[output])
        del grown[output]
    if table in saved and any(
        _ties(adapter) and table in adapter.saved for adapter in tables.adapters
    ):
        saved.setdefault(output, saved[table])  # peft keeps it under one of its names
    lora = [adapter for adapter in tables.adapters if _changes(adapter, {output, table})]
    if not lora and not {output, table} & {*saved}:
        return replace(tables, grown=grown)
    if all(map(_ties, lora)) and _are_alike(saved.get(output), saved.get(table)):
        saved.pop(output, None)  # what was done to the one was done to the other
        adapters = [_without(adapter, output) for adapter in tables.adapters]
        return replace(tables, adapters=adapters, saved=saved, grown=grown)
    return _untied(skeleton, replace(tables, saved=saved, grown=grown))


def _untied(skeleton: Skeleton, tables: Tables) -> Tables:
    """The tables as two: the output's begins as a copy of the input's. A bias is tied with its weight."""
    copies: dict[str, str] = {}
    grown = dict(tables.grown)
    for name, other in skeleton.ties.items():
        if name in tables.saved or name in skeleton.base.where:
            continue
        if other in grown:
            grown[name] = grown[other]
        else:
            copies[name] = other
    return replace(tables, grown=grown, copies=copies, untied=True)


def _ties(adapter: Fitted) -> bool:
    """Whether what was trained of one of the tables was trained of the other, too."""
    return bool(adapter.folder.config.get("ensure_weight_tying"))


def _changes(adapter: Fitted, tensors: set[str]) -> bool:
    return any(weight.tensor in tensors for weight in adapter.weights.values())


def _are_alike(one: Tensor | None, other: Tensor | None) -> bool:
    if one is None or other is None:
        return one is other
    return torch.equal(one, other.to(one))


def _without(adapter: Fitted, tensor: str) -> Fitted:
    kept = {
        layer: factors
        for layer, factors in adapter.factors.items()
        if adapter.weights[layer].tensor != tensor
    }
    return replace(adapter, factors=kept)


def _refuse_unknown(base: Checkpoint, touched: set[str]) -> None:
    """Refuse a table that may be tied, of a model that transformers does not know."""
    stated = _text_config(base).get("tie_word_embeddings")
    for tensor in touched:
        if not _may_be_tied(base, tensor) or tensor not in base.where:
            continue
        shape = base.stored(tensor).shape
        alone = not any(
            base.stored(other).shape == shape for other in base.where if other != tensor
        )
        if stated or alone:
            raise _cannot_part(base, tensor)


def _cannot_part(base: Checkpoint, tensor: str) -> CheckpointError:
    return CheckpointError(
        f"`{tensor}` is changed by an adapter, and `{base.folder}` uses it both for its input and for its output "
        "(`tie_word_embeddings`). The adapter changed one of them, and this model cannot hold both: it cannot be "
        "merged."
    )


# -- resized tables


def _resize(skeleton: Skeleton, tables: Tables) -> Tables:
    """Check that all tables have the same number of rows, and say which, if it is not the base's."""
    base = skeleton.base
    resized = [
        tensor for tensor, value in tables.saved.items() if _has_other_rows(base, tensor, value)
    ]
    _check_rows(base, tables)
    if not tables.grown and not resized:
        return tables
    names = {*tables.grown, *resized}
    owner = next(adapter for adapter in tables.adapters if names & {*adapter.grown, *adapter.saved})
    known = skeleton.tables | {*tables.grown}
    rows = {
        tensor: _rows(base, tables, skeleton.ties.get(tensor, tensor)) for tensor in sorted(known)
    }
    sizes = {count for count in rows.values() if count is not None}
    if len(sizes) != 1 or not skeleton.tables:
        listed = ", ".join(
            f"`{tensor}` {count}" for tensor, count in rows.items() if count is not None
        )
        raise CheckpointError(
            f"`{owner.folder.folder}` has resized the vocabulary of `{base.folder}`, and the tables of the merged "
            f"model would have different numbers of rows: {listed or 'transformers does not know which they are'}. It "
            "cannot be merged."
        )
    return replace(tables, size=sizes.pop(), owner=owner)


def _has_other_rows(base: Checkpoint, tensor: str, value: Tensor) -> bool:
    """Whether a tensor taken whole is a table of another number of rows."""
    if tensor not in base.where or any(part.isdigit() for part in tensor.split(".")):
        return False
    stored = base.stored(tensor).shape
    is_table = stored[:1] == (_text_config(base).get("vocab_size"),)
    return is_table and stored[0] != len(value) and stored[1:] == tuple(value.shape[1:])


def _rows(base: Checkpoint, tables: Tables, tensor: str) -> int | None:
    value = tables.saved.get(tensor, tables.grown.get(tensor))
    if value is not None:
        return len(value)
    source = tables.copies.get(tensor, tensor)
    return base.stored(source).shape[0] if source in base.where else None


def _check_rows(base: Checkpoint, tables: Tables) -> None:
    """Check that what is added to a table has its shape."""
    resized = {*tables.grown}.union(*(adapter.grown for adapter in tables.adapters))
    for adapter in tables.adapters:
        for layer, factors in adapter.factors.items():
            tensor = adapter.weights[layer].tensor
            if tensor in resized and _rows(base, tables, tensor) != factors.shape[0]:
                raise InputError(
                    f"`{adapter.name}` changes the {factors.shape[0]} rows of `{tensor}`, and the merged model would "
                    f"have {_rows(base, tables, tensor)}: adapters resized the vocabulary in different ways. Take its "
                    f"tables with `--saved-modules {adapter.name}`, or merge without it."
                )


def _text_config(base: Checkpoint) -> dict[str, Any]:
    """The configuration, and where it has none, what it says of a model of text inside."""
    nested = base.config.get("text_config")
    return {**(nested if isinstance(nested, dict) else {}), **base.config}
