"""A report's dict → the terminal: what was run, and the table."""

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from perdure.report.markdown import table


def show(summary: Mapping[str, Any], console: Console | None = None) -> None:
    """Print what was run and the summary table."""
    console = console or Console()
    for run in summary["runs"]:
        console.print(run["title"], style="bold", markup=False, highlight=False)
        console.print(run["sentence"] + "\n", markup=False, highlight=False)
    header, rows = table(summary)
    symbols = {metric["title"]: metric["symbol"] for metric in summary["metrics"].values()}
    first = 0 if len(summary["runs"]) > 1 else 1  # which run is clear if there is one
    drawn = Table(box=None, padding=(0, 2, 0, 0))
    for i, title in enumerate(header[first:], first):
        number = title in symbols
        drawn.add_column(
            symbols.get(title, title), justify="right" if number else "left", no_wrap=i != 1, overflow="fold"
        )
    for row in rows:
        drawn.add_row(*(Text(cell) for cell in row[first:]))
    console.print(drawn)
    names = ", ".join(f"{symbol}: {title.lower()}" for title, symbol in symbols.items())
    console.print(f"\nIn percent; – was not measured. {names}.", style="dim", markup=False, highlight=False)
