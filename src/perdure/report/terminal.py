"""A report's dict → the terminal, with what was run and the table of results."""

from collections.abc import Sequence

from rich.console import Console

from perdure.errors import clean
from perdure.report import calibration, general, unknown
from perdure.report.markdown import percent, scores, spread, table
from perdure.report.plain import Record, Summary
from perdure.report.series import of_task
from perdure.report.terminal_table import print_table

MANY = 8
"""The maximum number of tasks in a matrix, so that a row fits into 80 characters."""


def show(summary: Summary, console: Console | None = None) -> None:
    """Print what was run, and the table of results."""
    console = console or Console()
    for run in summary["runs"]:
        say(console, run["title"], style="bold")
        say(console, run["sentence"])
        for sentence in (run["status"], *run["problems"]):
            if sentence:
                say(console, sentence, style="yellow")
        console.print()
    symbols = {metric["title"]: metric["symbol"] for metric in summary["metrics"].values()}
    if not symbols:
        return
    _print_results(summary, symbols, console)
    for run in summary["runs"]:
        _print_last(run, console)
    names = ", ".join(f"{symbol}: {title.lower()}" for title, symbol in symbols.items())
    say(console, f"\nIn percent; – was not measured. {names}.", style="dim")
    if said := scores(summary):
        say(console, said, style="dim")
    for part in (calibration, general, unknown):
        for sentence in part.sentences(summary):
            say(console, sentence)


def _print_results(summary: Summary, symbols: dict[str, str], console: Console) -> None:
    results = table(summary)
    # With a single run, the column with its title is redundant.
    first = 0 if len(summary["runs"]) > 1 else 1
    # A line of 80 characters has no room for the columns after the metrics.
    end = results.texts + len(symbols)
    titles = results.header[first:end]
    header = [symbols.get(title, title) for title in titles]
    rows = [row[first:end] for row in results.rows]
    texts = range(results.texts - first)
    print_table(
        console,
        header,
        rows,
        texts=texts,
    )


def _print_last(run: Record, console: Console) -> None:
    """Print the scores after the last task if only some are known, and the average is missing."""
    results = []
    for result in run["results"]:
        if result["rule"] == run["rule"] and result["matrix"]:
            results.append(result)
    last = [result["matrix"][-1] for result in results]
    if not any(_is_partial(row) for row in last):
        return
    rows = []
    for number in range(len(results[0]["tasks"])):
        cells = [percent(row[number]) for row in last]
        rows.append([of_task(results[0], number), *cells])
    console.print()
    header = ["task", *(result["known"] for result in results)]
    title = f"{run['title']}: scores after the last task (%)"
    print_table(
        console,
        header,
        rows,
        title=title,
    )


def _is_partial(row: Sequence[float | None]) -> bool:
    return None in row and any(value is not None for value in row)


def say(console: Console, text: str, style: str = "") -> None:
    """Print a text without interpreting markup in it."""
    # Task names may contain brackets, which rich would interpret as markup.
    console.print(
        clean(text),
        style=style,
        markup=False,
        highlight=False,
    )


def overview(summary: Summary, console: Console | None = None) -> None:
    """Print the average score after the last task, for each run and rule.

    There is a column for each `task_id`.
    """
    console = console or Console()
    # The same columns for all runs, although each may be measured with different `task_id`s.
    ways: dict[str, None] = {}
    for run in summary["runs"]:
        for result in run["results"]:
            ways[result["known"]] = None
    rows = []
    for run in summary["runs"]:
        by_rule: dict[str, dict[str, float | None]] = {}
        for result in run["results"]:
            averages = by_rule.setdefault(result["rule"], {})
            averages[result["known"]] = result["metrics"]["average_accuracy"]
        for rule, averages in by_rule.items():
            cells = [percent(averages.get(way)) for way in ways]
            rows.append([run["title"], rule, *cells])
    print_table(
        console,
        ["", "rule", *ways],
        rows,
        texts=(0, 1),
        title=f"Average {_measure(summary)} after the last task (%)",
    )


def over_seeds(summary: Summary, console: Console | None = None) -> None:
    """Print the average score after the last task of runs that differ only in their seed.

    There is a row for each rule, as mean ± standard deviation, and for each failed trial.
    """
    console = console or Console()
    ways: dict[str, None] = {}
    for group in summary["groups"]:
        for result in group["results"]:
            ways[result["known"]] = None
    rows = []
    for group in summary["groups"]:
        by_rule: dict[str, dict[str, str]] = {}
        for result in group["results"]:
            averages = by_rule.setdefault(result["rule"], {})
            averages[result["known"]] = spread(result["metrics"].get("average_accuracy"))
        for rule, averages in by_rule.items():
            cells = [averages.get(way, "–") for way in ways]
            rows.append([group["title"], rule, str(len(group["runs"])), *cells])
    for trial in summary.get("failed", []):
        rows.append([trial["title"], f"failed: {trial['reason']}", "", *[""] * len(ways)])
    print_table(
        console,
        ["", "rule", "seeds", *ways],
        rows,
        texts=(0, 1),
        title=f"Average {_measure(summary)} after the last task (%)",
    )


def _measure(summary: Summary) -> str:
    """Return "accuracy" if all tasks were measured with it, or else "score"."""
    names = {result["metric"] for run in summary["runs"] for result in run["results"]}
    return "accuracy" if names == {"accuracy"} else "score"


def matrices(summary: Summary, console: Console | None = None) -> None:
    """Print the accuracy matrices of each run's own rule, for each `task_id` but `given`.

    Each row shows the scores after one of the tasks.
    """
    console = console or Console()
    for run in summary["runs"]:
        for result in run["results"]:
            if result["rule"] != run["rule"] or result["task_id"] == "given":
                continue
            count = len(result["tasks"])
            if count > MANY:
                return console.print(f"The matrices of {count} tasks are in the report.")
            title = f"{run['title']}, {result['known']}"
            header = ["after", *(of_task(result, column) for column in range(count))]
            print_table(
                console,
                header,
                _matrix_rows(result),
                title=title,
            )
            console.print()


def _matrix_rows(result: Record) -> list[list[str]]:
    rows = []
    for step, (task, values) in enumerate(zip(result["tasks"], result["matrix"], strict=True)):
        cells = [task]
        for column, value in enumerate(values):
            # Tasks that were not learned yet are left blank rather than shown as not measured.
            blank = value is None and column > step
            cells.append("" if blank else percent(value))
        rows.append(cells)
    return rows
