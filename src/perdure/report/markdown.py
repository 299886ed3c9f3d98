"""A report's dict → a table, and Markdown."""

import math
import re
from collections.abc import Mapping
from typing import Any


def percent(value: float | None, *, signed: bool = False) -> str:
    """A share in percent.

    Examples
    --------
    >>> percent(0.6875), percent(-0.04), percent(0.04, signed=True), percent(None)
    ('68.8', '−4.0', '+4.0', '–')
    """
    return number(None if value is None else 100 * value, 1, signed=signed)


def number(value: float | None, digits: int = 2, *, signed: bool = False) -> str:
    """A number with so many digits after the point; – for one that is not defined.

    Examples
    --------
    >>> number(-0.004), number(0.756), number(None)
    ('0.00', '0.76', '–')
    """
    if value is None or math.isnan(value):
        return "–"
    rounded = round(value, digits) + 0.0  # no minus before a zero
    return f"{rounded:{'+' if signed else ''}.{digits}f}".replace("-", "−")


def spread(value: Mapping[str, Any] | None, *, signed: bool = False) -> str:
    """A mean over runs in percent, with the standard deviation where there are several.

    Examples
    --------
    >>> spread({"mean": 0.5, "sd": 0.021, "n": 3}), spread({"mean": 0.5, "sd": None, "n": 1})
    ('50.0 ± 2.1', '50.0')
    """
    if value is None:
        return "–"
    return percent(value["mean"], signed=signed) + (f" ± {percent(value['sd'])}" if value["sd"] is not None else "")


def table(summary: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """The header and the rows of the summary table: run, rule, how the task is known, metrics in percent.

    Runs that differ in their seed only are one row, with how many there are.
    """
    seeds = any(len(group["runs"]) > 1 for group in summary["groups"])
    header = ["Run", *(["Seeds"] if seeds else []), "Rule", "Task known by"]
    rows = []
    for group in summary["groups"]:
        for result in group["results"]:
            numbers = [spread(result["metrics"].get(m), signed=m.endswith("transfer")) for m in summary["metrics"]]
            rule = result["rule"] if result["metric"] == "accuracy" else f"{result['rule']} ({result['metric']})"
            count = [str(len(group["runs"]))] if seeds else []
            rows.append([group["title"], *count, rule, result["known"], *numbers])
    return [*header, *(metric["title"] for metric in summary["metrics"].values())], rows


def note(summary: Mapping[str, Any]) -> str:
    """How to read the table."""
    several = any(len(group["runs"]) > 1 for group in summary["groups"])
    return "In percent; – was not measured." + (" Mean ± standard deviation over seeds." if several else "")


def unfinished(summary: Mapping[str, Any]) -> list[str]:
    """What is missing of runs, and which are not finished."""
    runs = summary["runs"]
    status = [f"{run['title']}: {run['status']}" for run in runs if run["status"]]
    return status + [problem for run in runs for problem in run["problems"]]


def to_markdown(summary: Mapping[str, Any]) -> str:
    """What was run, the table, and the definitions of its metrics."""
    header, rows = table(summary)
    first = len(header) - len(summary["metrics"])
    rule = ["---"] * first + ["---:"] * (len(header) - first)
    lines = ["| " + " | ".join(_cell(cell) for cell in row) + " |" for row in [header, rule, *rows]]
    runs = [f"- **{_cell(run['title'])}**: {_cell(run['sentence'])}" for run in summary["runs"]]
    missing = [f"- {_cell(said)}" for said in unfinished(summary)]
    notes = [f"- {metric['title']}: {metric['definition']}" for metric in summary["metrics"].values()]
    parts = [*runs, "", *(["Not whole:", "", *missing, ""] if missing else []), *lines, "", note(summary), "", *notes]
    return "\n".join([*parts, ""])


def _cell(text: str) -> str:
    return re.sub(r"([\\`*|\[\]])", r"\\\1", " ".join(text.split())).replace("<", "&lt;")
