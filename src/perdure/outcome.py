"""What a command shows when it has done its work."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import typer

from perdure.errors import printable


def say(*lines: object) -> None:
    """Print lines, whatever characters are in the names that they hold."""
    for line in lines:
        typer.echo(printable(str(line)))


def done(run: Path) -> int:
    """Return how much a run has done."""
    from perdure import run_files

    return sum(event.get("event") in ("step", "evaluation") for event in run_files.events(run))


def report(run: Path) -> None:
    """Write a run's report and show its scores: of several processes the first one does."""
    from perdure.report import report

    if os.environ.get("RANK", "0") == "0":
        show(report([run], run / "report.html"), run)


def show(summary: Mapping[str, Any], folder: Path | None = None) -> None:
    """Show what runs measured, and where their report is."""
    from perdure.report import terminal

    terminal.show(summary)
    if folder:
        say("", f"Report: {folder / 'report.html'}")
