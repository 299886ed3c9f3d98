"""A report's dict → a table, and Markdown."""

from collections.abc import Mapping
from typing import Any


def percent(value: float | None, *, signed: bool = False) -> str:
    """A share in percent.

    Examples
    --------
    >>> percent(0.6875), percent(-0.04), percent(0.04, signed=True), percent(None)
    ('68.8', '−4.0', '+4.0', '–')
    """
    if value is None:
        return "–"
    number = round(100 * value, 1) + 0.0  # no minus before a zero
    return f"{number:{'+' if signed else ''}.1f}".replace("-", "−")


def table(summary: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """The header and the rows of the summary table: run, rule, how the task is known, metrics in percent."""
    header = ["Run", "Rule", "Task known by", *(metric["title"] for metric in summary["metrics"].values())]
    rows = []
    for run in summary["runs"]:
        for result in run["results"]:
            numbers = [percent(result["metrics"].get(m), signed=m.endswith("transfer")) for m in summary["metrics"]]
            rule = result["rule"] if result["metric"] == "accuracy" else f"{result['rule']} ({result['metric']})"
            rows.append([run["title"], rule, result["known"], *numbers])
    return header, rows


def to_markdown(summary: Mapping[str, Any]) -> str:
    """What was run, the table, and the definitions of its metrics."""
    header, rows = table(summary)
    rule = ["---"] * 3 + ["---:"] * (len(header) - 3)
    lines = ["| " + " | ".join(_cell(cell) for cell in row) + " |" for row in [header, rule, *rows]]
    runs = [f"- **{_cell(run['title'])}**: {_cell(run['sentence'])}" for run in summary["runs"]]
    notes = [f"- {metric['title']}: {metric['definition']}" for metric in summary["metrics"].values()]
    return "\n".join([*runs, "", *lines, "", "In percent; – was not measured.", "", *notes, ""])


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
