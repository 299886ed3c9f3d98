"""The result of a rule for adapters matched to a base model on disk, before it is written."""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

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

# Weights with one row per label. A head with a different number of labels may replace the
# base model's head, and the configuration then gets new labels.
HEADS = ("classifier.weight", "score.weight", "classifier.out_proj.weight")
HEAD_MODULES = tuple(name.removesuffix(".weight") for name in HEADS)


@dataclass(frozen=True)
class Merger:
    """The result of a rule for a base model and adapters, before it is written.

    Attributes
    ----------
    vector
        The change to each layer, by layer name in the base model.
    tables
        The token tables (one row per token) of the merged model.
    saved
        Fully trained tensors to copy from adapters, in the dtype of the base model.
    grown
        Token tables with a different number of rows than in the base model, to which
        changes are added, in the dtype of the base model.
    """

    base: Checkpoint
    adapters: Sequence[Fitted]
    rule: str
    settings: Mapping[str, object]
    vector: TaskVector
    tables: Tables
    saved: Mapping[str, Tensor]
    grown: Mapping[str, Tensor]

    @property
    def shapes(self) -> dict[str, tuple[int, int]]:
        """The shape of the change to each layer."""
        return _shapes(self.adapters)

    @cached_property
    def weights(self) -> dict[str, Weight]:
        """The location of each layer's weight in the base model."""
        weights: dict[str, Weight] = {}
        for adapter in self.adapters:
            weights.update(adapter.weights)
        return weights

    def stored(self, tensor: str) -> Stored:
        """Return the dtype and shape of a tensor in the merged model, before changes are added."""
        if tensor in self.grown:
            return new(self.grown[tensor])
        return self.base.stored(self._source(tensor))

    def changes(self, file: str) -> dict[str, fold.Change | fold.Stack]:
        """Return the change ΔW to each weight that is written to a file, by tensor name."""
        # Group layers by tensor, because experts are several layers in one tensor.
        layers_of: dict[str, dict[int | None, str]] = {}
        for layer in self.vector.entries:
            weight = self.weights[layer]
            if self._file(weight.tensor) != file:
                continue
            layers = layers_of.setdefault(weight.tensor, {})
            layers[weight.index] = layer

        changes: dict[str, fold.Change | fold.Stack] = {}
        for tensor, layers in layers_of.items():
            changes[tensor] = self._change(layers)
        return changes

    def replaced(self, file: str) -> dict[str, Tensor]:
        """Return the tensors in a file that replace those of the base model, by name."""
        replaced: dict[str, Tensor] = {}
        values = {**self.grown, **self.saved}
        for tensor, value in values.items():
            if self._file(tensor) == file:
                replaced[tensor] = value
        return replaced

    def copies(self, file: str) -> dict[str, str]:
        """Return the new tensors in a file that start as copies, mapped to their source tensors."""
        copies: dict[str, str] = {}
        for copy, source in self.tables.copies.items():
            if self._file(copy) == file:
                copies[copy] = source
        return copies

    def _source(self, tensor: str) -> str:
        """Return the name of the tensor in the base model from which a tensor is initialised."""
        return self.tables.copies.get(tensor, tensor)

    def _file(self, tensor: str) -> str:
        """Return the name of the file to which a tensor is written.

        A copy is written to the file of its source, and any other new tensor to the last file.
        """
        source = self._source(tensor)
        if source in self.base.where:
            return self.base.where[source]
        # Any file would do, because the index lists it.
        files = list(self.base.files)
        return files[-1]

    def _change(self, layers: Mapping[int | None, str]) -> fold.Change | fold.Stack:
        """Return the change to a tensor, given the name of the layer for each matrix in it."""
        changes: dict[int, fold.Change] = {}
        for index, layer in layers.items():
            change = fold.Change(
                functools.partial(self.vector.__getitem__, layer),
                transposed=self.weights[layer].transposed,
            )
            if index is None:
                return change
            changes[index] = change
        return fold.Stack(changes)


def combine(
    base: str | Path,
    adapters: Sequence[str | Path],
    rule: RuleLike,
    *,
    saved_modules: str | None = None,
    any_base: bool = False,
) -> Merger:
    """Read the adapters and apply a rule to them; see `merge_checkpoint`."""
    # Check the rule first, because reading a large base model takes a while.
    name, function, settings = _chosen_rule(rule)
    checkpoint = Checkpoint.open(base)
    skeleton = Skeleton(checkpoint)
    fitted = fit.fit(checkpoint, adapters, skeleton, any_base=any_base)
    _check_scales(settings, fitted)

    saved = fit.choose_saved(fitted, saved_modules)
    tables = vocabulary.arrange(skeleton, fitted, saved, saved_modules)
    # If two tables are tied, a change to both must count only once, so `arrange` drops the second.
    fitted = tables.adapters
    # No other statistics are stored on disk with adapters, and only runs of perdure write these.
    statistics: dict[str, object] = {}
    if "inputs" in nature_of(function).needs:
        statistics["inputs"] = fit.inputs(fitted, name)
    _check_saved(fitted, tables.saved)
    vector = _apply(name, function, {**statistics, **settings}, fitted)

    # The card also lists default settings, so that the merge can be reproduced.
    all_settings: dict[str, object] = {}
    for key, parameter in registry.options(function).items():
        all_settings[key] = parameter.default
    all_settings.update(settings)
    return Merger(
        base=checkpoint,
        adapters=fitted,
        rule=name,
        settings=all_settings,
        vector=vector,
        tables=tables,
        saved=_typed(checkpoint, tables, tables.saved),
        grown=_typed(checkpoint, tables, tables.grown),
    )


def _chosen_rule(rule: RuleLike) -> tuple[str, Callable[..., object], dict[str, object]]:
    """Return the name, function and settings of a rule; raise if it cannot merge PEFT folders."""
    # `own` omits `space` and `since` if they have their defaults, the only values supported here.
    if isinstance(rule, Rule):
        rule = rule.own
    name, options = named(rule, "rule")
    function = registry.find("rule", name)
    if nature_of(function).order == "routed":
        raise _routed(name)
    for key in {"space", "since"} & set(options):
        raise InputError(
            f"`{key}` is only for rules in a run. "
            "PEFT folders are always merged by their changes to the weights."
        )
    settings = checked(function, options, f"rule `{name}`")
    if settings.get("scale") == "search":
        raise InputError(
            "`scale: search` needs the tasks' validation data: use a run folder, or give a number."
        )
    return name, function, settings


def _routed(rule: str) -> InputError:
    return InputError(
        f"The rule `{rule}` is routed: its result depends on the input, so there is no single "
        "model to write. Choose another rule, such as `task_arithmetic`."
    )


def _check_scales(settings: Mapping[str, object], adapters: Sequence[Fitted]) -> None:
    """Check that each key of a per-task `scale` is the name of a merged adapter."""
    scales = settings.get("scale")
    names = [adapter.name for adapter in adapters]
    if isinstance(scales, dict):
        for task in scales:
            if task not in names:
                raise UnknownName("adapter (in `scale`)", task, names)


def _check_saved(adapters: Sequence[Fitted], saved: Mapping[str, Tensor]) -> None:
    """Check that no weight is changed by one adapter and replaced by another."""
    for tensor in saved:
        layer = tensor.removesuffix(".weight")
        for adapter in adapters:
            if layer in adapter.factors:
                raise InputError(
                    f"`{layer}` is changed by the adapter `{adapter.name}`, and replaced by "
                    "another adapter (`modules_to_save`), so one of the two would be lost. "
                    "Give `--saved-modules none`, or leave out one of the adapters."
                )


def _shapes(adapters: Sequence[Fitted]) -> dict[str, tuple[int, int]]:
    """Return the shape of the change to each layer that is changed by any of the adapters."""
    shapes: dict[str, tuple[int, int]] = {}
    for adapter in adapters:
        shapes.update(adapter.shapes)
    return shapes


def _apply(
    rule: str,
    function: Callable[..., object],
    settings: Mapping[str, object],
    adapters: Sequence[Fitted],
) -> TaskVector:
    """Apply the rule to the adapters.

    If the rule is layerwise, each layer is computed separately when it is read.
    """
    shapes = _shapes(adapters)
    all_vectors = {adapter.name: adapter.vector for adapter in adapters}

    # Users can write their own rules, so check the result each time.
    def applied(vectors: dict[str, TaskVector]) -> TaskVector:
        vector = function(vectors, **settings)
        if not isinstance(vector, TaskVector):
            raise _routed(rule)
        for layer, entry in vector.items():
            shape = shapes.get(layer)
            if shape != tuple(entry.shape):
                raise InputError(
                    f"The rule `{rule}` changes `{layer}` by a matrix of shape "
                    f"{tuple(entry.shape)}; the adapters change it by {shape or 'nothing'}."
                )
        return vector

    def applied_to(layer: str) -> Entry:
        vectors: dict[str, TaskVector] = {}
        for name, vector in all_vectors.items():
            entries: dict[str, Entry] = {}
            if layer in vector:
                entries[layer] = vector[layer]
            # An adapter that does not change the layer still counts, for example in an average.
            vectors[name] = TaskVector(entries)
        vector = applied(vectors)
        return vector[layer]

    # A mapping may have one scale per group of layers, and the groups depend on all layers.
    if not nature_of(function).layerwise or isinstance(settings.get("scale"), dict):
        return applied(all_vectors)
    # Apply the rule to the smallest layer first, so that invalid settings raise immediately.
    smallest = min(shapes, key=lambda layer: math.prod(shapes[layer]))
    applied_to(smallest)
    makers = {layer: functools.partial(applied_to, layer) for layer in shapes}
    return TaskVector(OnDemand(makers))


def _typed(base: Checkpoint, tables: Tables, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Convert tensors from adapters to the dtypes of the base model's tensors that they replace.

    New tensors get the dtype that is most common in the base model.
    """
    usual = _usual_type(base)
    typed: dict[str, Tensor] = {}
    for tensor, value in tensors.items():
        dtype = usual
        if tensor in base.where:
            stored = base.stored(tensor)
            dtype = stored.dtype
            _check_shape(base, tables, tensor, value)
        # If the base model's dtype is not a float (quantized), do not convert the tensor.
        converted = value.to(FLOATS.get(dtype, value.dtype))
        if not converted.isfinite().all():
            raise CheckpointError(
                f"`{tensor}` of an adapter is too large for the base's type, {converted.dtype}."
            )
        typed[tensor] = converted
    return typed


def _usual_type(base: Checkpoint) -> str:
    """Return the most common floating-point dtype of a model, measured in bytes."""
    # Count bytes, because there may be many norms with a different dtype from the large matrices.
    sizes: dict[str, int] = {}
    for tensor in base.where:
        stored = base.stored(tensor)
        dtype = stored.dtype
        if dtype in FLOATS:
            size = total_bytes([stored])
            sizes[dtype] = sizes.get(dtype, 0) + size
    if not sizes:
        return "F32"
    return max(sizes, key=sizes.__getitem__)


def _check_shape(base: Checkpoint, tables: Tables, tensor: str, value: Tensor) -> None:
    """Check that a tensor, unless it is a head or a resized table, has the required shape."""
    shape = base.stored(tensor).shape
    new_shape = tuple(value.shape)
    if new_shape == shape:
        return
    is_table = tables.size is not None and len(value) == tables.size
    is_head = tensor.removesuffix(".bias").endswith((*HEADS, *HEAD_MODULES))
    if not is_table and not is_head:
        raise CheckpointError(
            f"`{tensor}` has the shape {shape} in `{base.folder}`, and {new_shape} in an adapter."
        )
