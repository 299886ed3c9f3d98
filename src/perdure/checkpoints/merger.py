"""What a rule makes of adapters that are fitted to a base on disk, before anything is written."""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor

from perdure import registry
from perdure.checkpoints import fit, fold, vocabulary
from perdure.checkpoints.base import Checkpoint
from perdure.checkpoints.fit import Fitted
from perdure.checkpoints.skeleton import Skeleton
from perdure.checkpoints.vocabulary import Tables
from perdure.checkpoints.weights import Weight
from perdure.errors import CheckpointError, InputError, UnknownName
from perdure.merging.rule import nature_of
from perdure.merging.rule_settings import Rule, RuleLike
from perdure.settings import checked, named
from perdure.storage.tensors import FLOATS, Stored, new, total_bytes
from perdure.vectors.task_vector import Entry, OnDemand, TaskVector

HEADS = (
    "classifier.weight",
    "score.weight",
    "classifier.out_proj.weight",
)  # whose rows are the labels


@dataclass(frozen=True)
class Merger:
    """What a rule made of adapters, before it is written.

    Attributes
    ----------
    vector
        The change of the base, by the name of a layer in the base.
    tables
        What becomes of the tables with a row for each token.
    saved
        Whole tensors that are taken from adapters, in the type of the base.
    grown
        Tables of another number of rows than the base's, to which changes are added; likewise.
    """

    base: Checkpoint
    adapters: Sequence[Fitted]
    rule: str
    settings: Mapping[str, Any]
    vector: TaskVector
    tables: Tables
    saved: Mapping[str, Tensor]
    grown: Mapping[str, Tensor]

    @property
    def shapes(self) -> dict[str, tuple[int, int]]:
        """The shape of each layer's change."""
        return {
            layer: shape for adapter in self.adapters for layer, shape in adapter.shapes.items()
        }

    @cached_property
    def weights(self) -> dict[str, Weight]:
        """Where the weight of each layer lies in the base."""
        return {
            layer: weight for adapter in self.adapters for layer, weight in adapter.weights.items()
        }

    def stored(self, tensor: str) -> Stored:
        """Type and shape of a tensor of the merged model before it is changed."""
        if tensor in self.grown:
            return new(self.grown[tensor])
        return self.base.stored(self.tables.copies.get(tensor, tensor))

    def changes(self, name: str) -> dict[str, fold.Change | fold.Stack]:
        """ΔW of each weight that a file will have."""
        layers: dict[str, dict[int | None, str]] = {}
        for layer in self.vector.entries:
            weight = self.weights[layer]
            if self._file(weight.tensor) == name:
                layers.setdefault(weight.tensor, {})[weight.index] = layer
        return {tensor: self._change(parts) for tensor, parts in layers.items()}

    def replaced(self, name: str) -> dict[str, Tensor]:
        """The whole tensors of a file that are not the base's."""
        values = {**self.grown, **self.saved}
        return {tensor: value for tensor, value in values.items() if self._file(tensor) == name}

    def copies(self, name: str) -> dict[str, str]:
        """The new tensors of a file that begin as a copy of one that is there."""
        return {
            copy: source for copy, source in self.tables.copies.items() if self._file(copy) == name
        }

    def _file(self, tensor: str) -> str:
        """Where a tensor goes: a copy beside the tensor that it is of, a new one into the last file."""
        last = list(self.base.files)[-1]
        return self.base.where.get(self.tables.copies.get(tensor, tensor), last)

    def _change(self, parts: Mapping[int | None, str]) -> fold.Change | fold.Stack:
        made = {
            index: fold.Change(
                functools.partial(self.vector.__getitem__, layer), self.weights[layer].transposed
            )
            for index, layer in parts.items()
        }
        if None in made:
            return made[None]
        return fold.Stack({index: change for index, change in made.items() if index is not None})


def combine(
    base: str | Path,
    adapters: Sequence[str | Path],
    rule: RuleLike,
    *,
    saved_modules: str | None = None,
    any_base: bool = False,
) -> Merger:
    """Read the adapters and apply a rule to them; see `merge_checkpoint`."""
    name, options = named(rule.own if isinstance(rule, Rule) else rule, "rule")
    function = registry.find("rule", name)
    if nature_of(function).order == "routed":
        raise _routed(name)
    for key in {"space", "since"} & set(options):
        raise InputError(
            f"`{key}` is for the rules of a run. PEFT folders are merged by what they add to the weights."
        )
    settings = checked(function, options, f"rule `{name}`")
    scales = settings.get("scale")
    if scales == "search":
        raise InputError(
            "`scale: search` needs the tasks' validation data: give a run folder, or a number here."
        )
    checkpoint = Checkpoint.open(base)
    skeleton = Skeleton(checkpoint)
    found = fit.fit(checkpoint, adapters, skeleton, any_base=any_base)
    names = [adapter.name for adapter in found]
    if isinstance(scales, dict) and (unknown := [task for task in scales if task not in names]):
        raise UnknownName("adapter (in `scale`)", unknown[0], names)
    saved = fit.choose_saved(found, saved_modules)
    tables = vocabulary.arrange(skeleton, found, saved, saved_modules)
    found = tables.adapters
    extra = {"inputs": fit.inputs(found, name)} if "inputs" in nature_of(function).needs else {}
    _check_saved(found, tables.saved)
    vector = _apply(name, function, {**extra, **settings}, found)
    usual = {key: parameter.default for key, parameter in registry.options(function).items()}
    whole = _typed(checkpoint, tables, tables.saved)
    grown = _typed(checkpoint, tables, tables.grown)
    return Merger(checkpoint, found, name, usual | settings, vector, tables, whole, grown)


def _routed(rule: str) -> InputError:
    return InputError(
        f"The rule `{rule}` is routed: what acts depends on the input, so there is no one model to write. Choose "
        "another, such as `task_arithmetic`."
    )


def _check_saved(adapters: Sequence[Fitted], saved: Mapping[str, Tensor]) -> None:
    """A weight cannot be changed by one adapter and replaced by another."""
    for layer in (tensor.removesuffix(".weight") for tensor in saved):
        both = [adapter.name for adapter in adapters if layer in adapter.factors]
        if both:
            raise InputError(
                f"`{layer}` is changed by the adapter `{both[0]}`, and taken whole (`modules_to_save`) from another: "
                "one of them would be lost. Give `--saved-modules none`, or merge without one of them."
            )


def _apply(
    rule: str, function: Callable[..., Any], settings: Mapping[str, Any], adapters: Sequence[Fitted]
) -> TaskVector:
    """What the rule makes of the adapters; a layer at a time, when it is wanted, if the rule can."""
    shapes = {layer: shape for adapter in adapters for layer, shape in adapter.shapes.items()}
    whole = {adapter.name: adapter.vector for adapter in adapters}

    def applied(vectors: dict[str, TaskVector]) -> TaskVector:
        vector = function(vectors, **settings)
        if not isinstance(vector, TaskVector):
            raise _routed(rule)
        for layer, entry in vector.items():
            if shapes.get(layer) != tuple(entry.shape):
                raise InputError(
                    f"The rule `{rule}` changes `{layer}` by a matrix of the shape {tuple(entry.shape)}; the adapters "
                    f"change it by {shapes.get(layer) or 'nothing'}."
                )
        return vector

    def of(layer: str) -> Entry:
        return applied(
            {name: TaskVector({layer: v[layer]} if layer in v else {}) for name, v in whole.items()}
        )[layer]

    if not nature_of(function).layerwise or isinstance(
        settings.get("scale"), dict
    ):  # which may speak of depth
        return applied(whole)
    of(
        min(shapes, key=lambda layer: math.prod(shapes[layer]))
    )  # wrong settings show before anything is written
    return TaskVector(OnDemand({layer: functools.partial(of, layer) for layer in shapes}))


def _typed(base: Checkpoint, tables: Tables, saved: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Saved tensors in the type of those that they replace, or of most of the model."""
    sizes: dict[str, int] = {}
    for tensor in base.where:
        stored = base.stored(tensor)
        sizes[stored.dtype] = sizes.get(stored.dtype, 0) + total_bytes([stored])
    usual = max((dtype for dtype in sizes if dtype in FLOATS), key=sizes.__getitem__, default="F32")
    typed = {}
    for tensor, value in saved.items():
        stored = base.stored(tensor) if tensor in base.where else None
        may_differ = tables.size is not None and len(value) == tables.size
        may_differ |= tensor.removesuffix(".bias").endswith(_head_modules())
        if stored and stored.shape != tuple(value.shape) and not may_differ:
            raise CheckpointError(
                f"`{tensor}` has the shape {stored.shape} in `{base.folder}`, and {tuple(value.shape)} in an adapter."
            )
        typed[tensor] = value.to(FLOATS.get(stored.dtype if stored else usual, value.dtype))
        if not typed[tensor].isfinite().all():
            raise CheckpointError(
                f"`{tensor}` of an adapter is too great for the base's type, {typed[tensor].dtype}."
            )
    return typed


def _head_modules() -> tuple[str, ...]:
    return (*HEADS, *(name.removesuffix(".weight") for name in HEADS))
