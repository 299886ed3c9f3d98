"""The output of a command after it has finished."""

import contextlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import typer

from perdure.errors import InputError, OutputError, PerdureError, printable


def say(*lines: object) -> None:
    """Print lines, escaping characters that a terminal would interpret or cannot write."""
    for line in lines:
        typer.echo(printable(str(line)))


def done(run: Path) -> list[float]:
    """Return the modification times of the files that a run changes when it learns or evaluates.

    Other events do not change these files, but may change the recipe and the log.
    """
    return [_time(run / name) for name in ("tasks", "scores.csv", "combined.json")]


def is_first() -> bool:
    """Return True in the first of several processes, which alone writes and prints."""
    # read from the environment, because importing torch for the rank would take seconds
    return os.environ.get("RANK", "0") == "0"


def report(run: Path) -> None:
    """Write a run's report and show its scores; with several processes, only in the first one."""
    from perdure.report import report

    if is_first():
        show(report([run], run / "report.html"), run)


@contextlib.contextmanager
def reported(run: Path) -> Iterator[None]:
    """Write a run's report after the block has worked on the run.

    If the block fails because its work had already been done, a missing or outdated
    report is written nevertheless: the earlier command may have been stopped just before
    writing it.
    """
    try:
        yield
    except (InputError, OutputError):
        # the user should see this error, which a second one would hide
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
    """Show the scores of runs and, if `folder` is given, the path of the report in it."""
    from perdure.report import terminal

    terminal.show(summary)
    if folder:
        say("", f"Report: {folder / 'report.html'}")
