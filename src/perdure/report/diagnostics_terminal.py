"""What `perdure diagnose` has found → the terminal, a row a task."""

from collections.abc import Mapping
from typing import Any

from rich.console import Console

from perdure import registry
from perdure.report.diagnostics.parts.declaration import Table
from perdure.report.plain import plain
from perdure.report.terminal import say
from perdure.report.terminal_table import print_table

ROWS = 40  # of a table at most


def show(found: Mapping[str, Any], console: Console | None = None) -> None:
    """Print a table for each part that was computed, how it is read, and why others were left out."""
    console = console or Console()
    found = plain(found)
    count = len(found["tasks"])
    say(
        console,
        f"{count} task{'s' if count > 1 else ''}, combined by {found['rule']}",
        style="bold",
    )
    for name, diagnostic in registry.diagnostics().items():
        if name in found["parts"]:
            part = found["parts"][name]
            console.print()
            _print(console, diagnostic.table(part, found["tasks"]))
            say(console, part["reading"], style="dim")
    for name, reason in found["left_out"].items():
        console.print()
        say(console, f"Left out: {name}. {reason}")


def _print(console: Console, table: Table) -> None:
    say(console, table.title, style="italic")
    texts = [i for i, name in enumerate(table.header) if i == 0 or name in table.texts]
    print_table(console, table.header, table.rows[:ROWS], texts=texts)
    if len(table.rows) > ROWS:
        say(console, f"… and {len(table.rows) - ROWS} more in diagnostics.json.")
