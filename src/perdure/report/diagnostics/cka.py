"""The table and the figures of the diagnostic `cka`, the similarity of features."""

from collections.abc import Sequence

import numpy as np

from perdure.report.diagnostics.parts import figures
from perdure.report.diagnostics.parts.declaration import Diagnostic, Part, Table
from perdure.report.diagnostics.parts.numbers import array
from perdure.report.diagnostics.parts.pictures import TASKS, drawn, heat_map, series, spread
from perdure.report.markdown import number
from perdure.report.picture import Picture

READING = (
    "With a CKA of 1, features are the same up to rotation and scale; near 0, they have nothing in "
    "common. Low values with the pre-trained model mean that learning changed the features a lot."
)


def table(numbers: Part, tasks: Sequence[str]) -> Table:
    """Return the table for the terminal, with the CKA after each task."""
    rows = []
    columns = zip(tasks, numbers["to_pretrained"], numbers["to_previous"], strict=True)
    for task, pretrained, previous in columns:
        rows.append([task, number(pretrained), number(previous)])
    return Table(
        title="CKA of the features after each task",
        header=["after", "with pre-trained", "with the previous step"],
        rows=rows,
    )


def pictures(numbers: Part, tasks: Sequence[str]) -> list[Picture]:
    """Return figures of the CKA over the steps, and between the layers of two models."""
    names = tasks[:TASKS]
    steps = {
        "with the pre-trained model": array(numbers["to_pretrained"])[:TASKS],
        "with the previous step": array(numbers["to_previous"])[:TASKS],
    }
    over_steps = series(
        figures.lines(steps, names, "CKA"),
        "CKA of the features after each task",
        names,
        steps,
    )
    # Deep models have too many layers to draw; the same ones are selected on both sides.
    kept = spread(len(numbers["layers"]), TASKS)
    layers = [numbers["layers"][layer] for layer in kept]
    by_layer = heat_map(
        "CKA: layer of the pre-trained model (row) × of the last one",
        array(numbers["matrix"])[np.ix_(kept, kept)],
        layers,
        layers,
        limits=(0.0, 1.0),
    )
    return drawn([over_steps, by_layer])


DIAGNOSTIC = Diagnostic(
    position=3,
    title="How far the features moved (CKA)",
    reading=READING,
    axes={"to_pretrained": "t", "to_previous": "t", "matrix": "ll"},
    table=table,
    pictures=pictures,
    reads_examples=True,
)
