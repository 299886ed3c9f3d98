"""A report's dict → a table, and Markdown."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
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
    >>> spread({"mean": 0.5, "sd": 0.021, "n": 3, "of": 3}), spread({"mean": 0.5, "sd": None, "n": 1, "of": 1})
    ('50.0 ± 2.1', '50.0')

    Where it was measured in some of the runs only, their number is said:

    >>> spread({"mean": 0.5, "sd": None, "n": 1, "of": 3}), spread({"mean": None, "sd": None, "n": 0, "of": 3})
    ('50.0 (1 of 3)', '–')
    """
    if value is None or value["mean"] is None:
        return "–"
    deviation = f" ± {percent(value['sd'])}" if value["sd"] is not None else ""
    share = f" ({value['n']} of {value['of']})" if value["n"] < value["of"] else ""
    return f"{percent(value['mean'], signed=signed)}{deviation}{share}"


@dataclass(frozen=True)
class ResultsTable:
    """The summary table: the names of its columns, and its rows.

    The first `texts` columns say what was measured: run, seeds, rule, and how the task is known. The others are
    numbers: the metrics in percent and, where they are known, the standard error of the average accuracy and the
    number of test examples.
    """

    header: list[str]
    texts: int
    rows: list[list[str]]


def table(summary: Mapping[str, Any]) -> ResultsTable:
    """Make the summary table. Runs that differ in their seed only are one row."""
    seeds = any(len(group["runs"]) > 1 for group in summary["groups"])
    results = [(group, result) for group in summary["groups"] for result in group["results"]]
    counted = any(result["examples"] for _, result in results)
    texts = ["Run", *(["Seeds"] if seeds else []), "Rule", "Task known by"]
    numbers = [metric["title"] for metric in summary["metrics"].values()]
    numbers += ["Standard error", "Test examples"] if counted else []
    rows = []
    for group, result in results:
        rule = (
            result["rule"]
            if result["metric"] == "accuracy"
            else f"{result['rule']} ({result['metric']})"
        )
        row = [group["title"], *([str(len(group["runs"]))] if seeds else []), rule, result["known"]]
        for name in summary["metrics"]:
            row.append(spread(result["metrics"].get(name), signed=name.endswith("transfer")))
        if counted:
            examples = result["examples"]
            row += [percent(result["standard_error"]), "–" if examples is None else f"{examples:,}"]
        rows.append(row)
    return ResultsTable(texts + numbers, len(texts), rows)


def note(summary: Mapping[str, Any]) -> str:
    """Say how to read the table."""
    sentences = ["In percent; – was not measured."]
    if any(len(group["runs"]) > 1 for group in summary["groups"]):
        sentences.append("Mean ± standard deviation over seeds.")
    if any(result["examples"] for group in summary["groups"] for result in group["results"]):
        sentences.append(
            "The standard error is that of the average accuracy, from the number of test examples."
        )
    return " ".join(sentences)


def unfinished(summary: Mapping[str, Any]) -> list[str]:
    """What is missing of runs, and which are not finished."""
    runs = summary["runs"]
    status = [f"{run['title']}: {run['status']}" for run in runs if run["status"]]
    return status + [problem for run in runs for problem in run["problems"]]


def to_markdown(summary: Mapping[str, Any]) -> str:
    """What was run, the table, and the definitions of its metrics."""
    results = table(summary)
    rule = ["---"] * results.texts + ["---:"] * (len(results.header) - results.texts)
    lines = [
        "| " + " | ".join(_cell(cell) for cell in row) + " |"
        for row in [results.header, rule, *results.rows]
    ]
    runs = [f"- **{_cell(run['title'])}**: {_cell(run['sentence'])}" for run in summary["runs"]]
    missing = [f"- {_cell(said)}" for said in unfinished(summary)]
    notes = [
        f"- {metric['title']}: {metric['definition']}" for metric in summary["metrics"].values()
    ]
    parts = [
        *runs,
        "",
        *(["Incomplete:", "", *missing, ""] if missing else []),
        *lines,
        "",
        note(summary),
        "",
        *notes,
    ]
    return "\n".join([*parts, ""])


def _cell(text: str) -> str:
    text = " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;")
    return re.sub(r"([\\`*|\[\]])", r"\\\1", text)
