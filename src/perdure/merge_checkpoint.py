"""PEFT folders and a base model on disk → one model on disk, or one adapter; nothing is loaded whole."""

import functools
import json
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from perdure import fitted, fold, merge_card, peft_export, registry, staging
from perdure.checkpoint import INDEX, Checkpoint, inside
from perdure.errors import CheckpointError, InputError, UnknownName
from perdure.fitted import Fitted
from perdure.merge_card import Merged, MergedAdapter
from perdure.rule import nature_of, takes_inputs
from perdure.settings import Section, checked, named
from perdure.task_vector import Deferred, Entry, OnDemand, TaskVector
from perdure.tensor_file import FLOATS, TensorFile, total_bytes

RUNTIME = 230_000_000  # bytes that Python and torch take
HEADS = ("classifier.weight", "score.weight", "classifier.out_proj.weight")  # whose rows are the labels


@dataclass(frozen=True)
class Merger:
    """What a rule made of adapters, before it is written.

    Attributes
    ----------
    vector
        The change of the base, by the name of a layer in the base.
    saved
        Whole tensors that are taken from adapters, in the type of the base.
    """

    base: Checkpoint
    adapters: Sequence[Fitted]
    rule: str
    settings: Mapping[str, Any]
    vector: TaskVector
    saved: Mapping[str, Tensor]

    @property
    def shapes(self) -> dict[str, tuple[int, int]]:
        """The shape of each layer's change."""
        return {layer: shape for adapter in self.adapters for layer, shape in adapter.shapes.items()}

    def changes(self, file: TensorFile) -> dict[str, fold.Change]:
        """ΔW of each weight in a file."""
        turned = frozenset().union(*(adapter.transposed for adapter in self.adapters))
        layers = {f"{layer}.weight": layer for layer in self.vector.entries}
        found = {tensor: layers[tensor] for tensor in file.tensors if tensor in layers}
        made = {tensor: functools.partial(self.vector.__getitem__, layer) for tensor, layer in found.items()}
        return {tensor: fold.Change(made[tensor], layer in turned) for tensor, layer in found.items()}

    def replaced(self, name: str) -> dict[str, Tensor]:
        """The whole tensors of a file; new ones go into the last."""
        last = list(self.base.files)[-1]
        return {tensor: value for tensor, value in self.saved.items() if self.base.where.get(tensor, last) == name}


def merge_checkpoint(
    base: str | Path,
    adapters: Sequence[str | Path],
    rule: Section = "task_arithmetic",
    output: str | Path | None = None,
    *,
    form: str = "model",
    rank: int | None = None,
    saved_modules: str | None = None,
    any_base: bool = False,
    dry_run: bool = False,
    quiet: bool = True,
) -> Merged:
    """Merge LoRA adapters, made anywhere, into the model on disk that they were trained on.

    Parameters
    ----------
    base
        The folder of a transformers model, a hub id, or `minilm` or `dinov2`.
    adapters
        PEFT folders, in the order in which they were learned.
    rule
        Its name, or a mapping of `name` and settings, as in a recipe.
    output
        A folder that is not there yet: it appears when all of it is written.
    form
        `model`: the base with W + ΔW, rounded once; `adapter`: ΔW as one LoRA of the base.
    rank
        Of the adapter's layers: the nearest there is. By default all that the rule gives, if that is low-rank.
    saved_modules
        The adapter whose `modules_to_save` (heads) are taken, or `none`; by default all, if none differ.
    any_base
        Take adapters that name another base model than this.
    dry_run
        Check all, apply the rule, and say what would be written.

    Raises
    ------
    CheckpointError
        A file is damaged, an adapter belongs to another model or cannot be merged, or the result is not finite.
    OutputError
        There is something at `output`, the disk is full, or writing is not allowed.
    InputError
        The rule, its settings or the options cannot be used.
    """
    if form not in ("model", "adapter"):
        raise InputError(f"`--as {form}`: a merger is written as `model` or as `adapter`.")
    if rank is not None and (form != "adapter" or rank < 1):
        raise InputError(f"`--rank {rank}`: a rank, at least 1, is for `--as adapter`; a model holds the whole merger.")
    if output is None and not dry_run:
        raise InputError("Give `--output`, the folder to write; or `--dry-run` to see what would be written.")
    place = Path(output) if output else Path.cwd() / "merged"
    if output:
        staging.check_free(place)
    merger = combine(base, adapters, rule, saved_modules=saved_modules, any_base=any_base)
    summary = _summary(merger, place, form, rank)
    if dry_run:
        return summary
    return (_write_model if form == "model" else _write_adapter)(merger, summary, rank, quiet)


def combine(
    base: str | Path,
    adapters: Sequence[str | Path],
    rule: Section,
    *,
    saved_modules: str | None = None,
    any_base: bool = False,
) -> Merger:
    """Read the adapters and apply a rule to them; see `merge_checkpoint`."""
    name, options = named(rule, "rule")
    function = registry.find("rule", name)
    for key in {"space", "since"} & set(options):
        raise InputError(f"`{key}` is for the rules of a run. PEFT folders are merged by what they add to the weights.")
    settings = checked(function, options, f"rule `{name}`")
    scales = settings.get("scale")
    if scales == "search":
        raise InputError("`scale: search` needs the tasks' validation data: give a run folder, or a number here.")
    checkpoint = Checkpoint.open(base)
    found = fitted.fit(checkpoint, adapters, any_base=any_base)
    names = [adapter.name for adapter in found]
    if isinstance(scales, dict) and (unknown := [task for task in scales if task not in names]):
        raise UnknownName("adapter (in `scale`)", unknown[0], names)
    saved = fitted.choose_saved(found, saved_modules)
    extra = {"inputs": fitted.inputs(found, name)} if takes_inputs(function) else {}
    _check_saved(found, saved)
    vector = _apply(name, function, {**extra, **settings}, found)
    usual = {key: parameter.default for key, parameter in registry.options(function).items()}
    return Merger(checkpoint, found, name, usual | settings, vector, _typed(checkpoint, saved))


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
            raise InputError(
                f"The rule `{rule}` is routed: what acts depends on the input, so there is no one model to write. "
                "Choose another, such as `task_arithmetic`."
            )
        for layer, entry in vector.items():
            if shapes.get(layer) != tuple(entry.shape):
                raise InputError(
                    f"The rule `{rule}` changes `{layer}` by a matrix of the shape {tuple(entry.shape)}; the adapters "
                    f"change it by {shapes.get(layer) or 'nothing'}."
                )
        return vector

    def of(layer: str) -> Entry:
        return applied({name: TaskVector({layer: v[layer]} if layer in v else {}) for name, v in whole.items()})[layer]

    nature = nature_of(function)
    if not (nature and nature.layerwise) or isinstance(settings.get("scale"), dict):  # which may speak of depth
        return applied(whole)
    of(min(shapes, key=lambda layer: math.prod(shapes[layer])))  # wrong settings show before anything is written
    return TaskVector(OnDemand({layer: functools.partial(of, layer) for layer in shapes}))


def _typed(base: Checkpoint, saved: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Saved tensors in the type of those that they replace, or of most of the model."""
    sizes: dict[str, int] = {}
    for tensor in base.where:
        stored = base.stored(tensor)
        sizes[stored.dtype] = sizes.get(stored.dtype, 0) + total_bytes([stored])
    usual = max((dtype for dtype in sizes if dtype in FLOATS), key=sizes.__getitem__, default="F32")
    typed = {}
    for tensor, value in saved.items():
        stored = base.stored(tensor) if tensor in base.where else None
        if stored and stored.shape != tuple(value.shape) and not tensor.removesuffix(".bias").endswith(_head_modules()):
            raise CheckpointError(
                f"`{tensor}` has the shape {stored.shape} in `{base.folder}`, and {tuple(value.shape)} in an adapter."
            )
        typed[tensor] = value.to(FLOATS.get(stored.dtype if stored else usual, value.dtype))
        if not typed[tensor].isfinite().all():
            raise CheckpointError(f"`{tensor}` of an adapter is too great for the base's type, {typed[tensor].dtype}.")
    return typed


def _head_modules() -> tuple[str, ...]:
    return (*HEADS, *(name.removesuffix(".weight") for name in HEADS))


# -- what is or would be written


def _summary(merger: Merger, output: Path, form: str, rank: int | None) -> Merged:
    if form == "model":
        size = sum(fold.size_of(file, merger.replaced(name)) for name, file in merger.base.files.items())
        size += sum((merger.base.folder / name).stat().st_size for name in merger.base.companions())
    else:
        size = sum(4 * sum(shape) * _most(merger, layer, shape, rank) for layer, shape in merger.shapes.items())
        size += sum(value.numel() * value.element_size() for value in merger.saved.values())
    return Merged(
        output=output,
        form=form,
        base=merger.base.published,
        rule=merger.rule,
        settings=merger.settings,
        adapters=tuple(MergedAdapter.of(adapter) for adapter in merger.adapters),
        layers=len(merger.vector),
        saved=tuple(sorted(merger.saved)),
        error=0.0 if form == "model" else None,
        rank=rank,
        size=size,
        free=staging.room(output),
        memory=_memory(merger),
    )


def _most(merger: Merger, layer: str, shape: tuple[int, int], rank: int | None) -> int:
    """The highest rank that a layer of an adapter can have, without applying the rule to it."""
    ranks = sum(adapter.factors[layer].rank for adapter in merger.adapters if layer in adapter.factors)
    return min(ranks, *shape, rank or ranks)


def _memory(merger: Merger) -> int:
    """An estimate: the factors that are held, twice (a result has its own), and the greatest full matrices."""
    low: dict[str, int] = {}
    for adapter in merger.adapters:
        for layer, factors in adapter.factors.items():
            low[layer] = low.get(layer, 0) + 4 * factors.rank * sum(factors.shape)
    if isinstance(merger.vector.entries, OnDemand):  # one layer at a time
        greatest = max(low, key=low.__getitem__)
        entries, factors = [merger.vector[greatest]], low[greatest]
    else:
        entries, factors = list(merger.vector.entries.values()), sum(low.values())
    whole = [4 * entry.shape.numel() for entry in entries if isinstance(entry, Deferred)]
    kept = sum(4 * entry.numel() for entry in entries if isinstance(entry, Tensor))
    kept += sum(value.numel() * value.element_size() for value in merger.saved.values())
    # of a full matrix: that of each task, their stack, what is left of it, signs, and the result
    full = (3 * len(merger.adapters) + 3) * max(whole, default=0)
    return RUNTIME + 2 * factors + full + kept + 6 * 4 * fold.BLOCK


def _write_model(merger: Merger, summary: Merged, rank: int | None, quiet: bool) -> Merged:
    base = merger.base
    with staging.new_folder(summary.output, size=summary.size) as folder, _progress(summary.size, quiet) as progress:
        for name in base.companions():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(inside(base.folder, str(name)).read_bytes())
        for name, file in base.files.items():
            fold.fold(file, folder / name, merger.changes(file), merger.replaced(name), progress)
        if base.index is not None:
            _write_index(merger, folder)
        _write_labels(merger, folder)
        (folder / "README.md").write_text(merge_card.card(summary), encoding="utf-8")
    return replace(summary, written=True)


def _write_index(merger: Merger, folder: Path) -> None:
    assert merger.base.index is not None
    files = {name: TensorFile(folder / name) for name in merger.base.files}
    table = {tensor: name for name, file in files.items() for tensor in file.tensors}
    size = sum(total_bytes(file.tensors.values()) for file in files.values())
    about = merger.base.index.get("metadata")
    index = {"metadata": (about if isinstance(about, dict) else {}) | {"total_size": size}, "weight_map": table}
    (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _write_labels(merger: Merger, folder: Path) -> None:
    """The number of labels, where a head was taken that has another."""
    heads = [value for tensor, value in merger.saved.items() if tensor.endswith(HEADS) and value.ndim == 2]
    labels = merger.base.config.get("id2label")
    if heads and len(heads[-1]) != (len(labels) if isinstance(labels, dict) else 2):
        names = {str(i): f"LABEL_{i}" for i in range(len(heads[-1]))}
        config = dict(merger.base.config) | {"id2label": names, "label2id": {v: int(k) for k, v in names.items()}}
        (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _write_adapter(merger: Merger, summary: Merged, rank: int | None, quiet: bool) -> Merged:
    first, embeddings = merger.adapters[0], _embeddings(merger.adapters)
    layers, left_out, whole = {}, 0.0, 0.0
    with _progress(len(merger.vector), quiet) as progress:
        for name, entry in merger.vector.items():
            change, missed, square = peft_export.truncated(entry, rank)
            stored = merger.base.stored(f"{name}.weight")
            layer = peft_export.Layer(first.names.layer(f"{name}.weight"), stored.shape, name in embeddings)
            layers[layer] = change
            left_out, whole = left_out + missed, whole + square
            progress(1)
    if not layers:
        raise InputError(f"The rule `{merger.rule}` changes no layer: there is no adapter to write.")
    tensors = peft_export.tensors(layers)
    saved = {_spelled(merger.adapters, name): value for name, value in merger.saved.items()}
    tensors |= {f"{peft_export.PREFIX}{name}": value for name, value in saved.items()}
    tasks = {adapter.folder.config.get("task_type") for adapter in merger.adapters}
    configuration = peft_export.config(
        layers,
        base_model_name_or_path=first.folder.base or merger.base.published,
        fan_in_fan_out=any(adapter.transposed for adapter in merger.adapters),
        modules_to_save=sorted({name.rpartition(".")[0] for name in saved}) or None,
        task_type=tasks.pop() if len(tasks) == 1 else None,
    )
    size = sum(value.numel() * value.element_size() for value in tensors.values())
    summary = replace(summary, error=(left_out / whole) ** 0.5 if whole else 0.0, size=size)
    with staging.new_folder(summary.output, size=size) as folder:
        peft_export.write(folder, configuration, tensors)
        (folder / "README.md").write_text(merge_card.card(summary), encoding="utf-8")
    return replace(summary, written=True)


def _spelled(adapters: Sequence[Fitted], tensor: str) -> str:
    """What the adapter that has trained a tensor whole calls it."""
    return next(adapter.spelled[tensor] for adapter in adapters if tensor in adapter.saved)


def _embeddings(adapters: Sequence[Fitted]) -> set[str]:
    found = set()
    for adapter in adapters:
        for layer, factors in adapter.folder.factors.items():
            if factors.embedding:
                found.add(str(adapter.names.tensor(layer)).removesuffix(".weight"))
    return found


@contextmanager
def _progress(total: int, quiet: bool):
    """A function that is told how much has been done."""
    if quiet:
        yield lambda count: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    columns = (TextColumn("Merging"), BarColumn(bar_width=40), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=total)
        yield lambda count: bar.advance(task, count)
