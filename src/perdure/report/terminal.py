"""A report's dict → the terminal: what was run, and the table."""

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from perdure.errors import printable
from perdure.report.markdown import percent, table
from perdure.report.plain import clean
from perdure.report.terminal_table import print_table

MANY = 8  # tasks: more columns hold no number on a line of 80 characters


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
        return
    first = 0 if len(summary["runs"]) > 1 else 1  # which run is clear if there is one
    shown = results.texts + len(symbols)  # a line of 80 characters has no room for more
    header = [symbols.get(title, title) for title in results.header[first:shown]]
    print_table(
        console,
        header,
        [row[first:shown] for row in results.rows],
        texts=range(results.texts - first),
    )
    for run in summary["runs"]:
        _last(run, console)
    names = ", ".join(f"{symbol}: {title.lower()}" for title, symbol in symbols.items())
    say(console, f"\nIn percent; – was not measured. {names}.", style="dim")


def _last(run: Mapping[str, Any], console: Console) -> None:
    """Print the score of each task after the last one, where not all of them have one: averages say nothing then."""
    results = [
        result for result in run["results"] if result["rule"] == run["rule"] and result["matrix"]
    ]
    scores = [result["matrix"][-1] for result in results]
    if not any(None in row and any(value is not None for value in row) for row in scores):
        return
    rows = []
    for number, task in enumerate(results[0]["tasks"]):
        rows.append([task, *(percent(row[number]) for row in scores)])
    console.print()
    header = ["task", *(result["known"] for result in results)]
    print_table(console, header, rows, title=f"{run['title']}: scores after the last task (%)")


def say(console: Console, text: str, style: str = "") -> None:
    """Print a sentence; nothing in it is markup."""
    console.print(clean(text), style=style, markup=False, highlight=False)


def prose(text: str, console: Console | None = None) -> None:
    """Print a docstring, its paragraphs folded to the width of the terminal."""
    console = console or Console()
    paragraph: list[str] = []
    for line in [*text.splitlines(), ""]:
        indent = _indent(line)
        same = paragraph and indent == _indent(paragraph[0])
        if paragraph and not (same and line.strip() and not _is_rule(line)):
            _print_paragraph(console, paragraph)
            paragraph = []
        if not line.strip() or _is_rule(line):
            console.print(Text(printable(line)))
        else:
            paragraph.append(line)


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip())


def _is_rule(line: str) -> bool:
    """Return whether a line is what stands under a heading."""
    return len(line.strip()) > 2 and set(line.strip()) == {"-"}


def _print_paragraph(console: Console, lines: Sequence[str]) -> None:
    if lines[0].lstrip().startswith(">>>"):  # lines of code are not folded
        for line in lines:
            console.print(Text(printable(line)))
        return
    space = " " * _indent(lines[0])
    joined = printable(" ".join(line.strip() for line in lines))
    for line in textwrap.wrap(joined, console.width, initial_indent=space, subsequent_indent=space):
        console.print(Text(line))


def listing(title: str, rows: Iterable[tuple[str, str]], console: Console | None = None) -> None:
    """Print names and what is said of each."""
    console = console or Console()
    console.print(
        Text(clean(title), style="italic")
    )  # a table's own title is as narrow as the table
    drawn = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    for name, text in rows:
        drawn.add_row(Text(printable(name)), Text(clean(text)))  # brackets are text here
    console.print(drawn)


def overview(summary: Mapping[str, Any], console: Console | None = None) -> None:
    """Print the average accuracy after the last task: a row per run and rule, a column per way to know the task."""
    console = console or Console()
    ways = list(
        dict.fromkeys(result["known"] for run in summary["runs"] for result in run["results"])
    )
    rows = []
    for run in summary["runs"]:
        for rule in dict.fromkeys(result["rule"] for result in run["results"]):
            found = {
                r["known"]: r["metrics"]["average_accuracy"]
                for r in run["results"]
                if r["rule"] == rule
            }
            rows.append([run["title"], rule, *(percent(found.get(way)) for way in ways)])
    print_table(
        console,
        ["", "rule", *ways],
        rows,
        texts=(0, 1),
        title="Average accuracy after the last task (%)",
    )


def matrices(summary: Mapping[str, Any], console: Console | None = None) -> None:
    """Print the accuracy matrices of each run's own rule, for each way to do without the task: a row is a step."""
    console = console or Console()
    for run in summary["runs"]:
        for result in run["results"]:
            if result["rule"] != run["rule"] or result["task_id"] == "given":
                continue
            if len(result["tasks"]) > MANY:
                return console.print(
                    f"The matrices of {len(result['tasks'])} tasks are in the report."
                )
            rows = []
            for step, (task, row) in enumerate(zip(result["tasks"], result["matrix"], strict=True)):
                cells = [
                    "" if value is None and later > step else percent(value)
                    for later, value in enumerate(row)
                ]
                rows.append([task, *cells])
            print_table(
                console,
                ["after", *result["tasks"]],
                rows,
                title=f"{run['title']}, {result['known']}",
            )
            console.print()
