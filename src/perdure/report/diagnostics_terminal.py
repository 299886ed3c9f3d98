"""Results of `perdure diagnose` → the terminal, as tables with a row for each task."""

from rich.console import Console

from perdure import registry
from perdure.report.diagnostics.parts.declaration import Table
from perdure.report.plain import Record, plain
from perdure.report.terminal import say
from perdure.report.terminal_table import print_table

ROWS = 40
"""The maximum number of rows of a table."""


def show(results: Record, console: Console | None = None) -> None:
    """Print each computed diagnostic and how to read it, and why others were left out."""
    console = console or Console()
    # Task names come from a folder that anybody may have written.
    results = plain(results)
    tasks = results["tasks"]
    plural = "s" if len(tasks) > 1 else ""
    headline = f"{len(tasks)} task{plural}, combined by {results['rule']}"
    say(console, headline, style="bold")
    for name, diagnostic in registry.diagnostics().items():
        if name in results["parts"]:
            numbers = results["parts"][name]
            console.print()
            _print(console, diagnostic.table(numbers, tasks))
            say(console, numbers["reading"], style="dim")
    # After the tables, which are what the user asked for.
    for name, reason in results["left_out"].items():
        console.print()
        say(console, f"Left out: {name}. {reason}")


def _print(console: Console, table: Table) -> None:
    say(console, table.title, style="italic")
    # The first column names the rows.
    texts = [0]
    for column, name in enumerate(table.header):
        if name in table.texts:
            texts.append(column)
    print_table(
        console,
        table.header,
        table.rows[:ROWS],
        texts=texts,
    )
    hidden = len(table.rows) - ROWS
    if hidden > 0:
        say(console, f"… and {hidden} more in diagnostics.json.")
