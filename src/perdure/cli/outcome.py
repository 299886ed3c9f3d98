"""The output of a command when its work is done."""

import contextlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import typer

from perdure.errors import InputError, OutputError, PerdureError, printable


def say(*lines: object) -> None:
    """Print lines, whatever characters the names in them contain."""
    for line in lines:
        typer.echo(printable(str(line)))


def done(run: Path) -> list[float]:
    """Return the times at which a run last learned and last measured something.

    These times change only when it does so again. (The recipe and the log also change
    otherwise.)
    """
    return [_time(run / name) for name in ("tasks", "scores.csv", "combined.json")]


def report(run: Path) -> None:
    """Write a run's report and show its scores; among several processes only the first one does."""
    from perdure.report import report

    # torch, which knows the rank, is not needed for a report
    if os.environ.get("RANK", "0") == "0":
        show(report([run], run / "report.html"), run)


@contextlib.contextmanager
def reported(run: Path) -> Iterator[None]:
    """Write a run's report after something was done to it.

    If the command is refused because its work was done before, a report that is missing or
    older than the run is written nevertheless: the earlier command may have been stopped just
    before it.
    """
    try:
        yield
    except (InputError, OutputError):
        # the refusal is what the user has to read; a second error would hide it
        with contextlib.suppress(PerdureError):
            if _changed_since_report(run):
                report(run)
        raise
    report(run)


def _changed_since_report(run: Path) -> bool:
    written = _time(run / "report.html")
    changed = [_time(run / name) for name in ("scores.csv", "events.jsonl")]
    return max(changed) > written


def _time(path: Path) -> float:
    """Return the modification time of a file or folder in seconds; 0 if unknown."""
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def show(summary: Mapping[str, object], folder: Path | None = None) -> None:
    """Show the scores of runs, and where their report is."""
    from perdure.report import terminal

    terminal.show(summary)
    if folder:
        say("", f"Report: {folder / 'report.html'}")
