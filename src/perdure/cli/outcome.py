"""What a command shows when it has done its work."""

import contextlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import typer

from perdure.errors import InputError, OutputError, PerdureError, printable


def say(*lines: object) -> None:
    """Print lines, whatever characters are in the names that they hold."""
    for line in lines:
        typer.echo(printable(str(line)))


def done(run: Path) -> list[float]:
    """Return when a run last learned and measured something: these change only when it does so again."""
    return [_time(run / name) for name in ("tasks", "scores.csv", "combined.json")]


def report(run: Path) -> None:
    """Write a run's report and show its scores: of several processes the first one does."""
    from perdure.report import report

    if os.environ.get("RANK", "0") == "0":
        show(report([run], run / "report.html"), run)


@contextlib.contextmanager
def reported(run: Path) -> Iterator[None]:
    """Write a run's report after something was done to it.

    Where that is refused because it was done before, a report that is missing or older than the run is written all
    the same: the command before may have been stopped just before its report.
    """
    try:
        yield
    except (InputError, OutputError):
        with contextlib.suppress(PerdureError):
            if _changed_since_report(run):
                report(run)
        raise
    report(run)


def _changed_since_report(run: Path) -> bool:
    written = _time(run / "report.html")
    return any(_time(run / name) > written for name in ("scores.csv", "events.jsonl"))


def _time(path: Path) -> float:
    """Return when a file or folder was last changed, in seconds; 0 if it is missing or may not be seen."""
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def show(summary: Mapping[str, Any], folder: Path | None = None) -> None:
    """Show what runs measured, and where their report is."""
    from perdure.report import terminal

    terminal.show(summary)
    if folder:
        say("", f"Report: {folder / 'report.html'}")
