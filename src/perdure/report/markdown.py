"""A report's dict → the table of results, and Markdown."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from perdure.report.plain import Record, Summary


def percent(value: float | None, *, signed: bool = False) -> str:
    """Format a share in percent.

    Examples
    --------
    >>> percent(0.6875), percent(-0.04), percent(0.04, signed=True), percent(None)
    ('68.8', '−4.0', '+4.0', '–')
    """
    return number(None if value is None else 100 * value, 1, signed=signed)


def number(value: float | None, digits: int = 2, *, signed: bool = False) -> str:
    """Format a number with `digits` decimal places; an undefined one becomes `–`.

    Examples
    --------
    >>> number(-0.004), number(0.756), number(None)
    ('0.00', '0.76', '–')
    """
    if value is None or math.isnan(value):
        return "–"
    rounded = round(value, digits) + 0.0  # no minus before a zero
    sign = "+" if signed else ""
    return f"{rounded:{sign}.{digits}f}".replace("-", "−")


def spread(value: Record | None, *, signed: bool = False) -> str:
    """Format a mean over runs in percent, with the standard deviation if there are several runs.

    Examples
    --------
    >>> spread({"mean": 0.5, "sd": 0.021, "n": 3, "of": 3})
    '50.0 ± 2.1'
    >>> spread({"mean": 0.5, "sd": None, "n": 1, "of": 1})
    '50.0'

    If only some of the runs were measured, their number is added:

    >>> spread({"mean": 0.5, "sd": None, "n": 1, "of": 3})
    '50.0 (1 of 3)'
    >>> spread({"mean": None, "sd": None, "n": 0, "of": 3})
    '–'
    """
    if value is None or value["mean"] is None:
        return "–"
    text = percent(value["mean"], signed=signed)
    if value["sd"] is not None:
        text += f" ± {percent(value['sd'])}"
    if value["n"] < value["of"]:
        text += f" ({value['n']} of {value['of']})"
    return text


@dataclass(frozen=True)
class ResultsTable:
    """The table of results, with the names of its columns and its rows.

    The first `texts` columns say what was measured: run, seeds, rule, and how the task is
    known. The others contain numbers: the metrics in percent and, if known, the standard
    error of the average accuracy and the number of test examples.
    """

    header: list[str]
    texts: int
    rows: list[list[str]]


def table(summary: Summary) -> ResultsTable:
    """Return the table of results. Runs that differ only in their seed share a row.

    A trial of a sweep that failed has a row with the reason instead of numbers.
    """
    seeds = _has_seeds(summary)
    counted = _has_counts(summary)
    texts = ["Run", "Rule", "Task known by"]
    # A column that would be the same in every row is left out.
    if seeds:
        texts.insert(1, "Seeds")
    numbers = [metric["title"] for metric in summary["metrics"].values()]
    if counted:
        numbers += ["Standard error", "Test examples"]
    rows = []
    for group in summary["groups"]:
        for result in group["results"]:
            row = [group["title"]]
            if seeds:
                row.append(str(len(group["runs"])))
            row += [_rule(result), result["known"]]
            for name in summary["metrics"]:
                # A transfer is a gain or a loss, so its sign is always shown.
                signed = name.endswith("transfer")
                row.append(spread(result["metrics"].get(name), signed=signed))
            if counted:
                examples = result["examples"]
                row.append(percent(result["standard_error"]))
                row.append("–" if examples is None else f"{examples:,}")
            rows.append(row)
    for trial in summary.get("failed", []):
        rows.append(_failed_row(trial, len(texts), len(numbers)))
    return ResultsTable(texts + numbers, len(texts), rows)


def _failed_row(trial: Record, texts: int, numbers: int) -> list[str]:
    """Return the row of a trial that failed: its name and the reason, but no numbers."""
    empty = [""] * (texts - 2)
    return [trial["title"], *empty, f"failed: {trial['reason']}", *["–"] * numbers]


def _has_seeds(summary: Summary) -> bool:
    return any(len(group["runs"]) > 1 for group in summary["groups"])


def _has_counts(summary: Summary) -> bool:
    """Return True if the number of test examples is known for any result."""
    for group in summary["groups"]:
        if any(result["examples"] for result in group["results"]):
            return True
    return False


def _rule(result: Record) -> str:
    # The usual score needs no name.
    if result["metric"] in ("accuracy", ""):
        return result["rule"]
    return f"{result['rule']} ({kind_of_score(result['metric'])})"


def kind_of_score(metric: str) -> str:
    """Return the name of the score of all tasks, or a phrase that says that their scores differ.

    Examples
    --------
    >>> kind_of_score("rouge_l"), kind_of_score("accuracy, rouge_l")
    ('rouge_l', 'scores differ')
    """
    return "scores differ" if "," in metric else metric


def scores(summary: Summary) -> str:
    """Return a sentence that names the score of each task; empty if all are `accuracy`.

    Examples
    --------
    >>> result = {"tasks": ["signs", "news"], "scores": ["accuracy", "rouge_l"]}
    >>> scores({"groups": [{"results": [result]}]})
    'Scores differ: accuracy (signs), rouge_l (news). Averages over tasks mix them.'
    """
    tasks: dict[str, dict[str, None]] = {}
    for group in summary["groups"]:
        for result in group["results"]:
            for task, score in zip(result["tasks"], result["scores"], strict=True):
                if score:
                    tasks.setdefault(score, {})[task] = None
    if len(tasks) < 2:
        return "".join(f"The score is {score}." for score in tasks if score != "accuracy")
    listed = ", ".join(f"{score} ({few(list(names))})" for score, names in tasks.items())
    return f"Scores differ: {listed}. Averages over tasks mix them."


def few(names: Sequence[str], most: int = 8) -> str:
    """Join the first few names, and add the number of the others.

    Examples
    --------
    >>> few(["a", "b", "c"], most=2)
    'a, b and 1 more'
    """
    text = ", ".join(names[:most])
    if len(names) > most:
        text += f" and {len(names) - most} more"
    return text


def note(summary: Summary) -> str:
    """Return a note on how to read the table of results."""
    sentences = ["In percent; – was not measured.", scores(summary)]
    if _has_seeds(summary):
        sentences.append("Mean ± standard deviation over seeds.")
    if _has_counts(summary):
        sentences.append(
            "The standard error is that of the average accuracy, from the number of test examples."
        )
    return " ".join(sentence for sentence in sentences if sentence)


def unfinished(summary: Summary) -> list[str]:
    """Return sentences on the runs that are unfinished, and on what is missing from any run."""
    runs = summary["runs"]
    sentences = [f"{run['title']}: {run['status']}" for run in runs if run["status"]]
    for run in runs:
        sentences += run["problems"]
    return sentences


def to_markdown(summary: Summary) -> str:
    """Return Markdown with what was run, the table of results, and its metrics' definitions."""
    lines = []
    for run in summary["runs"]:
        title = _cell(run["title"])
        sentence = _cell(run["sentence"])
        lines.append(f"- **{title}**: {sentence}")
    lines.append("")
    incomplete = unfinished(summary)
    if incomplete:
        lines += ["Incomplete:", ""]
        lines += [f"- {_cell(sentence)}" for sentence in incomplete]
        lines.append("")
    lines += _table_lines(table(summary))
    lines += ["", note(summary), ""]
    for metric in summary["metrics"].values():
        lines.append(f"- {metric['title']}: {metric['definition']}")
    lines.append("")  # the text ends in a line break
    return "\n".join(lines)


def _table_lines(results: ResultsTable) -> list[str]:
    # The colon aligns a column of numbers to the right.
    numbers = len(results.header) - results.texts
    rule = ["---"] * results.texts + ["---:"] * numbers
    lines = []
    for row in [results.header, rule, *results.rows]:
        cells = " | ".join(_cell(cell) for cell in row)
        lines.append(f"| {cells} |")
    return lines


def _cell(text: str) -> str:
    text = " ".join(text.split())
    # `&` comes first, because the replacement of `<` contains it.
    text = text.replace("&", "&amp;").replace("<", "&lt;")
    # A pipe would start a new cell, and the other characters are markup.
    return re.sub(r"([\\`*|\[\]])", r"\\\1", text)
