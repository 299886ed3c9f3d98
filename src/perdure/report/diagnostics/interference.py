"""The table and the figures of the diagnostic `interference`, on pairs of task vectors."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from perdure.report.diagnostics.parts import figures
from perdure.report.diagnostics.parts.declaration import Diagnostic, Part, Table
from perdure.report.diagnostics.parts.numbers import array, mean
from perdure.report.diagnostics.parts.pictures import (
    TASKS,
    by_layer,
    drawn,
    series,
    square,
    up_to,
)
from perdure.report.markdown import number, percent
from perdure.report.picture import Picture

READING = (
    "With a cosine of 0, two tasks change the weights independently; above 0 they agree, below 0 "
    "they oppose each other. The overlap is the mean squared cosine between their leading singular "
    "subspaces (0 is orthogonal, 1 is equal). The sign conflict is the share of weights that they "
    "change in opposite directions (50 % is chance)."
)


@dataclass(frozen=True)
class Measure:
    """The caption and the format of the heat maps for one measure of pairs of tasks."""

    caption: str
    limits: tuple[float, float] = (0.0, 1.0)
    percent: bool = False


MEASURES = {
    "cosine": Measure("Cosine", limits=(-1.0, 1.0)),
    "overlap_left": Measure("Overlap of what layers write (left singular vectors)"),
    "overlap_right": Measure("Overlap of what layers read (right singular vectors)"),
    "sign_conflict": Measure("Sign conflict, %", percent=True),
    "weighted_sign_conflict": Measure("Sign conflict, weighted by size, %", percent=True),
}
GREATEST = "greatest with"


def table(numbers: Part, tasks: Sequence[str]) -> Table:
    """Return the table for the terminal: a row for each task, with means over the other tasks."""
    cosine = array(numbers["cosine"])
    overlap = (array(numbers["overlap_left"]) + array(numbers["overlap_right"])) / 2
    conflict = array(numbers["sign_conflict"])
    rows = []
    for row, task in enumerate(tasks):
        # There is always another task, because nothing is computed for a single one.
        others = [other for other in range(len(tasks)) if other != row]
        closest = max(others, key=lambda other, row=row: _size(cosine[row, other]))
        rows.append(
            [
                task,
                number(numbers["norms"][row], 3),
                number(mean(cosine[row, others])),
                f"{number(cosine[row, closest])} {tasks[closest]}",
                number(mean(overlap[row, others])),
                percent(mean(conflict[row, others])),
            ]
        )
    return Table(
        title="Task vectors: means over the other tasks",
        header=["task", "‖ΔW‖", "cosine", GREATEST, "overlap", "sign conflict"],
        rows=rows,
        texts=(GREATEST,),
    )


def _size(cosine: float) -> float:
    """Return the absolute value of a cosine; for an undefined one, a number smaller than any."""
    return -2.0 if np.isnan(cosine) else abs(cosine)


def pictures(numbers: Part, tasks: Sequence[str]) -> list[Picture]:
    """Return heat maps of pairs of tasks, bars of the norms, and heat maps of both by layer."""
    shown = []
    for key, measure in MEASURES.items():
        shown.append(
            square(
                f"{measure.caption}: task × task",
                numbers[key],
                tasks,
                limits=measure.limits,
                percent=measure.percent,
            )
        )
    names = tasks[:TASKS]
    norms = {"‖ΔW‖": array(numbers["norms"])[:TASKS]}
    bars = figures.bars(norms, names, "‖ΔW‖")
    shown.append(
        series(
            bars,
            "Norm of each task vector",
            names,
            norms,
        )
    )
    # With very many tasks, the values of single layers are not computed.
    if numbers["layers"]:
        shown += _by_layer(numbers, tasks)
    return drawn(shown)


def _by_layer(numbers: Part, tasks: Sequence[str]) -> list[Picture]:
    norms = array(numbers["layer_norms"])[:, :TASKS]
    shown = [
        by_layer(
            "Norm: layer × task",
            norms,
            numbers["layers"],
            tasks[:TASKS],
            limits=up_to(norms),
        )
    ]
    # The number of pairs grows with the square of the number of tasks.
    chosen, pairs = _pairs(array(numbers["cosine"]), tasks)
    count = len(tasks) * (len(tasks) - 1) // 2
    strongest = "" if len(chosen) == count else f" ({len(chosen)} strongest)"
    for key, measure in MEASURES.items():
        values = array(numbers[f"layer_{key}"])
        shown.append(
            by_layer(
                f"{measure.caption}: layer × pair of tasks{strongest}",
                values[:, chosen],
                numbers["layers"],
                pairs,
                limits=measure.limits,
                percent=measure.percent,
            )
        )
    return shown


def _pairs(
    cosine: Float[ndarray, "tasks tasks"], tasks: Sequence[str]
) -> tuple[list[int], list[str]]:
    """Return the indices and the names of the pairs to draw, those with the greatest cosines."""
    # In the order in which the file stores a value for each pair.
    pairs = list(itertools.combinations(range(len(tasks)), 2))
    sizes = []
    for pair in pairs:
        size = abs(cosine[pair])
        sizes.append(np.nan_to_num(size))
    order = range(len(pairs))
    strongest = sorted(order, key=lambda pair: -sizes[pair])
    # Back in the original order, in which a reader looks for a pair.
    chosen = sorted(strongest[:TASKS])
    names = []
    for pair in chosen:
        left, right = pairs[pair]
        names.append(f"{tasks[left][:13]} – {tasks[right][:13]}")
    return chosen, names


DIAGNOSTIC = Diagnostic(
    position=1,
    title="Interference of task vectors",
    reading=READING,
    axes={
        "norms": "t",
        **dict.fromkeys(("cosine", "overlap_left", "overlap_right"), "tt"),
        **dict.fromkeys(("sign_conflict", "weighted_sign_conflict"), "tt"),
        "layer_norms": "lt",
        **dict.fromkeys(("layer_cosine", "layer_overlap_left", "layer_overlap_right"), "lp"),
        **dict.fromkeys(("layer_sign_conflict", "layer_weighted_sign_conflict"), "lp"),
    },
    table=table,
    pictures=pictures,
)
