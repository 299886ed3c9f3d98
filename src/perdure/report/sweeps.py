"""A sweep's folder in a report: its runs, and a row for each trial that failed."""

from collections.abc import Sequence
from pathlib import Path

from perdure.errors import RunError
from perdure.report.plain import Record
from perdure.runs.layout import is_run
from perdure.sweeps import folder as sweep_folder


def runs_of(folders: Sequence[str | Path]) -> list[Path]:
    """Return the run folders, with each folder of a sweep replaced by the runs in it.

    Raises
    ------
    RunError
        A sweep has no run yet, or its files cannot be read.
    """
    runs = []
    for folder in map(Path, folders):
        if not sweep_folder.is_sweep(folder):
            runs.append(folder)
            continue
        of_sweep = [entry.run for entry in sweep_folder.entries(folder) if is_run(entry.run)]
        if not of_sweep:
            raise RunError(_nothing(folder))
        runs += of_sweep
    return runs


def _nothing(folder: Path) -> str:
    """Return a sentence for a sweep without a run, with the reason of a trial that failed."""
    for trial in failures([folder]):
        return f"No trial of `{folder}` has begun a run. {trial['title']}: {trial['reason']}"
    return f"`{folder}` has no runs yet. `perdure sweep` makes them."


def failures(folders: Sequence[str | Path]) -> list[Record]:
    """Return the `title` and the `reason` of each trial that failed."""
    failed = []
    for folder in map(Path, folders):
        if not sweep_folder.is_sweep(folder):
            continue
        for entry in sweep_folder.entries(folder):
            if entry.failed:
                reason = str(entry.outcome.get("reason") or "the reason is not known")
                failed.append({"title": entry.name, "reason": reason})
    return failed
