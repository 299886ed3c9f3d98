"""A report's dict → the terminal: what was run, and the table."""

from collections.abc import Iterable, Mapping
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from perdure.errors import printable
from perdure.report.markdown import percent, table
from perdure.report.plain import clean

MANY = 8  # tasks: more columns hold no number on a line of 80 characters
STYLE: dict[str, Any] = {"title_justify": "left", "box": None, "padding": (0, 2, 0, 0)}


def show(summary: Mapping[str, Any], console: Console | None = None) -> None:
    """Print what was run and the summary table."""
    console = console or Console()
    for run in summary["runs"]:
        say(console, run["title"], style="bold")
        say(console, run["sentence"])
        for said in (run["status"], *run["problems"]):
            if said:
                say(console, said, style="yellow")
        console.print()
    results = table(summary)
    symbols = {metric["title"]: metric["symbol"] for metric in summary["metrics"].values()}
    if not symbols:
        return say(console, "Nothing is measured. `perdure evaluate` does it.")
    first = 0 if len(summary["runs"]) > 1 else 1  # which run is clear if there is one
    drawn = Table(**STYLE)
    shown = results.texts + len(symbols)  # a line of 80 characters has no room for more
    for i, title in enumerate(results.header[first:shown], first):
        number = title in symbols
        drawn.add_column(
            symbols.get(title, title), justify="right" if number else "left", no_wrap=i != 1, overflow="fold"
        )
    for row in results.rows:
        drawn.add_row(*(Text(cell) for cell in row[first:shown]))
    console.print(drawn)
    names = ", ".join(f"{symbol}: {title.lower()}" for title, symbol in symbols.items())
    say(console, f"\nIn percent; – was not measured. {names}.", style="dim")


def say(console: Console, text: str, style: str = "") -> None:
    """Print a sentence; nothing in it is markup."""
    console.print(clean(text), style=style, markup=False, highlight=False)


def listing(title: str, rows: Iterable[tuple[str, str]], console: Console | None = None) -> None:
    """Print names and what is said of each."""
    drawn = Table(title=Text(clean(title), style="italic"), show_header=False, **STYLE)
    for name, text in rows:
        drawn.add_row(Text(printable(name)), Text(clean(text)))  # brackets are text here
    (console or Console()).print(drawn)


def overview(summary: Mapping[str, Any], console: Console | None = None) -> None:
    """Print the average accuracy after the last task: a row per run and rule, a column per way to know the task."""
    console = console or Console()
    ways = list(dict.fromkeys(result["known"] for run in summary["runs"] for result in run["results"]))
    drawn = Table(title="Average accuracy after the last task (%)", **STYLE)
    for title in ("", "rule", *ways):
        drawn.add_column(title, justify="left" if title in ("", "rule") else "right", overflow="fold")
    for run in summary["runs"]:
        for rule in dict.fromkeys(result["rule"] for result in run["results"]):
            found = {r["known"]: r["metrics"]["average_accuracy"] for r in run["results"] if r["rule"] == rule}
            drawn.add_row(Text(run["title"]), Text(rule), *(percent(found.get(way)) for way in ways))
    console.print(drawn)


def matrices(summary: Mapping[str, Any], console: Console | None = None) -> None:
    """Print the accuracy matrices of each run's own rule, for each way to do without the task: a row is a step."""
    console = console or Console()
    for run in summary["runs"]:
        for result in run["results"]:
            if result["rule"] != run["rule"] or result["task_id"] == "given":
                continue
            if len(result["tasks"]) > MANY:
                return console.print(f"The matrices of {len(result['tasks'])} tasks are in the report.")
            drawn = Table(title=Text(f"{run['title']}, {result['known']}", style="italic"), **STYLE)
            drawn.add_column("after")
            for task in result["tasks"]:
                drawn.add_column(Text(task), justify="right")
            for task, row in zip(result["tasks"], result["matrix"], strict=True):
                drawn.add_row(Text(task), *("" if value is None else percent(value) for value in row))
            console.print(drawn, "")
