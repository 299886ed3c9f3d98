"""How far the features moved: shown."""

from collections.abc import Sequence

import numpy as np

from perdure.report.diagnostics.parts import figures
from perdure.report.diagnostics.parts.declaration import Diagnostic, Part, Table
from perdure.report.diagnostics.parts.numbers import array
from perdure.report.diagnostics.parts.pictures import TASKS, drawn, heat_map, series, spread
from perdure.report.markdown import number
from perdure.report.picture import Picture

READING = (
    "1: the same features but for rotation and scale; near 0: nothing in common. Low values against the "
    "pre-trained model mean that learning moved the features far."
)


def table(part: Part, tasks: Sequence[str]) -> Table:
    rows = [
        [task, number(first), number(before)]
        for task, first, before in zip(
            tasks, part["to_pretrained"], part["to_previous"], strict=True
        )
    ]
    return Table(
        "CKA of the features after each task",
        ["after", "with pre-trained", "with the step before"],
        rows,
    )


def pictures(part: Part, tasks: Sequence[str]) -> list[Picture]:
    names = tasks[:TASKS]
    steps = {
        "with the pre-trained model": array(part["to_pretrained"])[:TASKS],
        "with the step before": array(part["to_previous"])[:TASKS],
    }
    kept = spread(len(part["layers"]), TASKS)
    matrix, layers = array(part["matrix"])[np.ix_(kept, kept)], [part["layers"][i] for i in kept]
    return drawn([
        series(figures.lines(steps, names, "CKA"), "CKA of the features after each task", names, steps),
        heat_map("CKA: layer of the pre-trained model (row) × of the last one", matrix, layers, layers,
                 limits=(0.0, 1.0)),
    ])  # fmt: skip


DIAGNOSTIC = Diagnostic(
    position=3,
    title="How far the features moved (CKA)",
    reading=READING,
    axes={"to_pretrained": "t", "to_previous": "t", "matrix": "ll"},
    table=table,
    pictures=pictures,
    reads_examples=True,
)
