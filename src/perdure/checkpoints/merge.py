"""The merge of PEFT folders into their base model on disk, or into a single adapter.

No model is ever fully loaded into memory.
"""

from collections.abc import Callable, Iterator, Sequence
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

# The memory in bytes that Python and torch take without any model.
RUNTIME = 230_000_000


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
    """Merge LoRA adapters into their base model on disk, regardless of the tool that trained them.

    Parameters
    ----------
    base
        The folder of a transformers model, a hub id, or the name of a model that is
        installed as a package.
    adapters
        PEFT folders, in the order in which they were learned.
    rule
        A `Rule`, the name of a rule, or a mapping with `name` and settings, as in a recipe.
    output
        The folder to write, which must not exist yet. It is created when all files are complete.
    form
        `model`: write the base model with W + ΔW, rounded once; `adapter`: write ΔW as a
        single LoRA adapter for the base model.
    rank
        The rank to which each layer of the written adapter is truncated, using the
        closest matrix of that rank. By default, nothing is truncated, and the rule must
        return low-rank changes.
    saved_modules
        The adapter whose `modules_to_save` (such as heads) to use, or `none` to use those
        of the base model. By default, use those of all adapters, which must not differ.
    any_base
        Accept adapters whose configuration names a different base model.
    dry_run
        Check the input, apply the rule, and return what would be written, without writing it.

    Raises
    ------
    CheckpointError
        A file is damaged, an adapter belongs to another model or cannot be merged, or the
        result is not finite.
    OutputError
        `output` already exists, the disk is full, or writing is not allowed.
    InputError
        The rule, its settings or the options are invalid.
    """
    _check_options(form, rank)
    if output is None and not dry_run:
        raise InputError(
            "Give `--output`, the folder to write, or `--dry-run` to see what would be written."
        )
    target = Path.cwd() / "merged"
    if output:
        # Check this before reading anything, because writing may start minutes later.
        target = Path(output)
        staging.check_free(target)

    merger = combine(
        base,
        adapters,
        rule,
        saved_modules=saved_modules,
        any_base=any_base,
    )
    summary = _summary(merger, target, form, rank)
    if dry_run:
        return summary
    if form == "model":
        with _progress(summary.size, quiet) as progress:
            return merged_folder.write_model(merger, summary, progress)
    with _progress(len(merger.vector), quiet) as progress:
        return merged_folder.write_adapter(merger, summary, rank, progress)


def _check_options(form: str, rank: int | None) -> None:
    if form not in ("model", "adapter"):
        raise InputError(f"`--as {form}`: a merge is written as `model` or as `adapter`.")
    if rank is not None and (form != "adapter" or rank < 1):
        raise InputError(
            f"`--rank {rank}`: give a rank of at least 1, and only with `--as adapter`; "
            "a model is never truncated."
        )


# -- the summary


def _summary(merger: Merger, output: Path, form: str, rank: int | None) -> Merged:
    return Merged(
        output=output,
        form=form,
        base=merger.base.published,
        rule=merger.rule,
        settings=merger.settings,
        adapters=tuple(map(MergedAdapter.of, merger.adapters)),
        layers=len(merger.vector),
        saved=tuple(sorted(merger.saved)),
        error=0.0 if form == "model" else None,
        rank=rank,
        size=_size(merger, form, rank),
        free=staging.room(output),
        memory=_memory(merger),
        notes=merged_folder.notes(merger, form),
        loads_with=merged_folder.loads_with(merger, form),
    )


def _size(merger: Merger, form: str, rank: int | None) -> int:
    """Return the size of a model in bytes, or an upper bound for the size of an adapter."""
    if form == "model":
        return merged_folder.size_of(merger)
    # An exact size would require applying the rule, which may take as long as the merge itself.
    size = sum(_bytes(value) for value in merger.saved.values())
    for layer, (height, width) in merger.shapes.items():
        ranks = 0
        for adapter in merger.adapters:
            if layer in adapter.factors:
                ranks += adapter.factors[layer].rank
        # The rank of a sum is at most the sum of the ranks.
        highest = min(ranks, height, width, rank or ranks)
        size += 4 * (height + width) * highest
    return size


def _memory(merger: Merger) -> int:
    """Estimate the memory needed for the factors and the largest full matrices, in bytes."""
    low_rank: dict[str, int] = {}
    for adapter in merger.adapters:
        for layer, factors in adapter.factors.items():
            height, width = factors.shape
            size = 4 * factors.rank * (height + width)
            low_rank[layer] = low_rank.get(layer, 0) + size

    if isinstance(merger.vector.entries, OnDemand):
        # Only one layer at a time is in memory, so use the largest one.
        largest = max(low_rank, key=low_rank.__getitem__)
        entries = [merger.vector[largest]]
        factors = low_rank[largest]
    else:
        entries = list(merger.vector.entries.values())
        factors = sum(low_rank.values())

    largest_matrix = 0
    kept = 0
    for entry in entries:
        if isinstance(entry, Deferred):
            size = 4 * entry.shape.numel()
            largest_matrix = max(largest_matrix, size)
        elif isinstance(entry, Tensor):
            kept += 4 * entry.numel()
    for value in merger.saved.values():
        kept += _bytes(value)
    for value in merger.grown.values():
        kept += _bytes(value)

    # Computing a deferred matrix takes one matrix per task, their stack, and a processed
    # copy of it (3 per task), plus signs, sums and the result (3 more).
    matrices = 3 * len(merger.adapters) + 3
    # The result of a rule has factors in addition to those of the adapters, hence twice
    # the factors. `fold` needs blocks of W, ΔW, their sum and the result; six blocks are
    # ample.
    blocks = 6 * 4 * fold.BLOCK
    return RUNTIME + 2 * factors + matrices * largest_matrix + kept + blocks


def _bytes(value: Tensor) -> int:
    return value.numel() * value.element_size()


@contextmanager
def _progress(total: int, quiet: bool) -> Iterator[Callable[[int], None]]:
    """Show a progress bar unless `quiet` is true, and yield a function that advances it."""
    if quiet:
        yield lambda count: None
        return
    # Import these here, because calls from Python do not need a terminal.
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
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("", total=total)
        yield lambda count: bar.advance(task, count)
