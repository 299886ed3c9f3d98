"""What `perdure diagnose` has found → the terminal, a row a task."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from numpy import ndarray
from rich.console import Console

from perdure.report.markdown import number, percent
from perdure.report.plain import plain
from perdure.report.terminal import say
from perdure.report.terminal_table import print_table

ROWS = 40  # of a table at most


def show(found: Mapping[str, Any], console: Console | None = None) -> None:
    """Print a table for each part that was computed, how it is read, and why others were left out."""
    console = console or Console()
    found = plain(found)
    count = len(found["tasks"])
    say(console, f"{count} task{'s' if count > 1 else ''}, combined by {found['rule']}", style="bold")
    parts, titles = found["parts"], {"interference": _interference, "zones": _zones, "cka": _cka, "probe": _probe}
    for name, table in {**titles, "posterior": _posterior}.items():
        if name in parts:
            title, header, rows = table(parts[name], found["tasks"])
            console.print()
            say(console, title, style="italic")
            _print(console, header, rows)
            if len(rows) > ROWS:
                say(console, f"… and {len(rows) - ROWS} more in diagnostics.json.")
            say(console, parts[name]["reading"], style="dim")
    for name, reason in found["left_out"].items():
        console.print()
        say(console, f"Left out: {name}. {reason}")


Shown = tuple[str, list[str], list[list[str]]]
"""A table's title, header and rows."""


def _interference(part: Mapping[str, Any], tasks: Sequence[str]) -> Shown:
    cosine = array(part["cosine"])
    overlap = (array(part["overlap_left"]) + array(part["overlap_right"])) / 2
    conflict, rows = array(part["sign_conflict"]), []
    for i, task in enumerate(tasks):
        others = [j for j in range(len(tasks)) if j != i]
        close = max(others, key=lambda j, i=i: -2.0 if np.isnan(cosine[i, j]) else abs(cosine[i, j]))
        means = [mean(value[i, others]) for value in (cosine, overlap, conflict)]
        rows.append([task, number(part["norms"][i], 3), number(means[0]), f"{number(cosine[i, close])} {tasks[close]}",
                     number(means[1]), percent(means[2])])  # fmt: skip
    header = ["task", "‖ΔW‖", "cosine", "greatest with", "overlap", "sign conflict"]
    return "Task vectors: means over the other tasks", header, rows


def _zones(part: Mapping[str, Any], tasks: Sequence[str]) -> Shown:
    chance, width = ["by chance", *map(percent, part["by_chance"])], ["task", "zone I", "II", "III"]
    rows = [[task, *map(percent, shares)] for task, shares in zip(tasks, part["shares"], strict=True)]
    return "Where ΔW lies in the pre-trained weights (% of ‖ΔW‖²)", width, [chance, *rows]


def _cka(part: Mapping[str, Any], tasks: Sequence[str]) -> Shown:
    rows = [
        [task, number(first), number(before)]
        for task, first, before in zip(tasks, part["to_pretrained"], part["to_previous"], strict=True)
    ]
    return "CKA of the features after each task", ["after", "with pre-trained", "with the step before"], rows


def _probe(part: Mapping[str, Any], tasks: Sequence[str]) -> Shown:
    rows = [["(pre-trained)", percent(part["accuracy"][0]), "", ""]]
    for i, task in enumerate(tasks):
        changes = [percent(part[key][i], signed=True) for key in ("plasticity", "stability")]
        rows.append([task, percent(part["accuracy"][i + 1]), *changes])
    return "Probe accuracy on all tasks after each (%)", ["after", "accuracy", "plasticity", "stability"], rows


def _posterior(part: Mapping[str, Any], tasks: Sequence[str]) -> Shown:
    rows = []
    for i, row in enumerate(shares(part["confusion"])):
        others = [j for j in range(len(tasks)) if j != i and row[j] > 0]
        taken = max(others, key=lambda j, row=row: row[j], default=None)
        rows.append([tasks[i], percent(none(row[i])), "" if taken is None else f"{percent(row[taken])} {tasks[taken]}"])
    errors = f"task {percent(part['task_ece'])}, class {percent(part['class_ece'])}"
    return f"Task found (%); calibration error: {errors}", ["true task", "found", "most often taken for"], rows


def _print(console: Console, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    texts = [i for i, name in enumerate(header) if i == 0 or name in ("greatest with", "most often taken for")]
    print_table(console, header, rows[:ROWS], texts=texts)


# -- numbers


def array(values: Any) -> Float[ndarray, "..."]:
    """Lists of numbers; None is nan."""
    return np.array(values, dtype=float)


def mean(values: Float[ndarray, " n"]) -> float | None:
    """The mean of those that are defined."""
    known = values[np.isfinite(values)]
    return float(known.mean()) if len(known) else None


def none(value: float) -> float | None:
    """None for nan."""
    return float(value) if np.isfinite(value) else None


def shares(confusion: Any) -> Float[ndarray, "true found"]:
    """Each row of a confusion matrix, divided by its sum; nan where a row is empty."""
    counts = array(confusion)
    with np.errstate(invalid="ignore", divide="ignore"):
        return counts / counts.sum(1, keepdims=True)
