"""The table and the figures of the diagnostic `posterior`, on recognising the task."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from numpy import ndarray
from numpy.typing import ArrayLike

from perdure.report.diagnostics.parts import figures
from perdure.report.diagnostics.parts.declaration import Diagnostic, Part, Table
from perdure.report.diagnostics.parts.numbers import array, none, shares
from perdure.report.diagnostics.parts.pictures import cells, drawn, square
from perdure.report.markdown import percent
from perdure.report.picture import Picture

READING = (
    "Row: the true task; column: the task that was found. With a calibration error of 0, a share p "
    "of the answers given with confidence p is right. Risk: the share of wrong answers among those "
    "whose confidence is above a threshold, such as that of `perdure predict --min-probability`."
)
TAKEN_FOR = "most often taken for"


def table(numbers: Part, tasks: Sequence[str]) -> Table:
    """Return the table for the terminal, with a row for each true task."""
    confusion = shares(numbers["confusion"])
    rows = []
    for number, task in enumerate(tasks):
        row = confusion[number]
        # The diagonal is the share of examples whose task was found.
        rows.append([task, percent(none(row[number])), _mistake(row, number, tasks)])
    errors = f"task {percent(numbers['task_ece'])}, class {percent(numbers['class_ece'])}"
    return Table(
        title=f"Task found (%); calibration error: {errors}",
        header=["true task", "found", TAKEN_FOR],
        rows=rows,
        texts=(TAKEN_FOR,),
    )


def _mistake(row: Float[ndarray, " tasks"], task: int, tasks: Sequence[str]) -> str:
    """Return the task for which a task was most often mistaken, with the share; empty if none."""
    # A comparison with nan is false, so a task without examples was never mistaken.
    others = [other for other in range(len(tasks)) if other != task and row[other] > 0]
    if not others:
        return ""
    likeliest = max(others, key=lambda other: row[other])
    return f"{percent(row[likeliest])} {tasks[likeliest]}"


def pictures(numbers: Part, tasks: Sequence[str]) -> list[Picture]:
    """Return the confusion matrix of the tasks, and how far the confidence can be trusted.

    These are reliability diagrams of tasks and classes, and the risk at each coverage.
    """
    confusion = square(
        "True task (row) × task found, % of the row",
        shares(numbers["confusion"]),
        tasks,
        limits=(0.0, 1.0),
        percent=True,
    )
    task = _reliability("p(task | x)", numbers["task_bins"], numbers["task_ece"])
    label = _reliability("p(class | x)", numbers["class_bins"], numbers["class_ece"])
    return drawn([confusion, task, label, _risk(numbers["class_bins"])])


def _reliability(label: str, rows: ArrayLike, error: float | None) -> Picture:
    bins = array(rows)
    caption = f"Reliability of {label}"
    if error is not None:
        caption += f": calibration error {100 * error:.1f} %"
    return Picture(
        caption=caption,
        svg=figures.reliability(bins, f"confidence, {label}, %"),
        header=["from", "to", "examples", "confidence", "right"],
        rows=cells(bins),
    )


def risks(rows: ArrayLike) -> Float[ndarray, "thresholds 3"]:
    """Return the threshold, coverage and risk for each bin of confidence, most confident first.

    The coverage is the share of examples with a confidence above the threshold, and the
    risk is the share of wrong answers among them.

    Examples
    --------
    >>> bins = [[0.0, 0.5, 2, 0.4, 0.5], [0.5, 1.0, 6, 0.9, 1.0]]
    >>> risks(bins).tolist()
    [[0.5, 0.75, 0.0], [0.0, 1.0, 0.125]]
    """
    bins = np.nan_to_num(array(rows))
    low, _, count, _, accuracy = bins[bins[:, 2] > 0][::-1].T
    answered = count.cumsum()
    wrong = (count * (1 - accuracy)).cumsum()
    return np.stack([low, answered / count.sum(), wrong / answered], axis=1)


def _risk(rows: ArrayLike) -> Picture:
    points = risks(rows)
    # One point is no curve: all answers have about the same confidence.
    svg = figures.risk(points) if len(points) > 1 else ""
    return Picture(
        caption="Risk and coverage, by the least p(class | x)",
        svg=svg,
        header=["confidence above", "coverage", "risk"],
        rows=cells(points),
    )


DIAGNOSTIC = Diagnostic(
    position=5,
    title="The task posterior",
    reading=READING,
    axes={
        "confusion": "tt",
        **dict.fromkeys(("task_ece", "class_ece"), ""),
        **dict.fromkeys(("task_bins", "class_bins"), "bc"),
    },
    table=table,
    pictures=pictures,
    reads_examples=True,
)
