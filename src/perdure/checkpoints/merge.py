"""PEFT folders and a base model on disk → one model on disk, or one adapter; nothing is loaded whole."""

from collections.abc import Sequence
from contextlib import contextmanager
from pathlib import Path

from torch import Tensor

from perdure.checkpoints import fold, merged_folder
from perdure.checkpoints.card import Merged, MergedAdapter
from perdure.checkpoints.merger import Merger, combine
from perdure.errors import InputError
from perdure.merging.rule_settings import RuleLike
from perdure.storage import staging
from perdure.vectors.task_vector import Deferred, OnDemand

RUNTIME = 230_000_000  # bytes that Python and torch take


def merge_checkpoint(
    base: str | Path,
    adapters: Sequence[str | Path],
    rule: RuleLike = "task_arithmetic",
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
        A `Rule`, its name, or a mapping of `name` and settings, as in a recipe.
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
        raise InputError(
            f"`--rank {rank}`: a rank, at least 1, is for `--as adapter`; a model holds the whole merger."
        )
    if output is None and not dry_run:
        raise InputError(
            "Give `--output`, the folder to write; or `--dry-run` to see what would be written."
        )
    place = Path(output) if output else Path.cwd() / "merged"
    if output:
        staging.check_free(place)
    merger = combine(base, adapters, rule, saved_modules=saved_modules, any_base=any_base)
    summary = _summary(merger, place, form, rank)
    if dry_run:
        return summary
    if form == "model":
        with _progress(summary.size, quiet) as progress:
            return merged_folder.write_model(merger, summary, progress)
    with _progress(len(merger.vector), quiet) as progress:
        return merged_folder.write_adapter(merger, summary, rank, progress)


# -- what is or would be written


def _summary(merger: Merger, output: Path, form: str, rank: int | None) -> Merged:
    if form == "model":
        size = merged_folder.size_of(merger)
    else:
        size = sum(
            4 * sum(shape) * _most(merger, layer, shape, rank)
            for layer, shape in merger.shapes.items()
        )
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
        notes=merged_folder.notes(merger, form),
        loads_with=merged_folder.loads_with(merger, form),
    )


def _most(merger: Merger, layer: str, shape: tuple[int, int], rank: int | None) -> int:
    """The highest rank that a layer of an adapter can have, without applying the rule to it."""
    ranks = sum(
        adapter.factors[layer].rank for adapter in merger.adapters if layer in adapter.factors
    )
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
    whole_tensors = [*merger.saved.values(), *merger.grown.values()]
    kept += sum(value.numel() * value.element_size() for value in whole_tensors)
    # of a full matrix: that of each task, their stack, what is left of it, signs, and the result
    full = (3 * len(merger.adapters) + 3) * max(whole, default=0)
    return RUNTIME + 2 * factors + full + kept + 6 * 4 * fold.BLOCK


@contextmanager
def _progress(total: int, quiet: bool):
    """A function that is told how much has been done."""
    if quiet:
        yield lambda count: None
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        Progress,
        TaskProgressColumn,
        TextColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("Merging"),
        BarColumn(bar_width=40),
        TaskProgressColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=total)
        yield lambda count: bar.advance(task, count)
