"""What a linear classifier reads from the features: shown."""

from collections.abc import Sequence

from perdure.report.diagnostics.parts import figures
from perdure.report.diagnostics.parts.declaration import Diagnostic, Part, Table
from perdure.report.diagnostics.parts.numbers import array
from perdure.report.diagnostics.parts.pictures import TASKS, drawn, heat_map, series
from perdure.report.markdown import percent
from perdure.report.picture import Picture

READING = (
    "An analysis with the training data of all tasks, no method: a fresh linear classifier on each step's "
    "frozen features. Rising: the features gained; flat: stable, not plastic; falling: something was "
    "lost."
)


def table(part: Part, tasks: Sequence[str]) -> Table:
    rows = [["(pre-trained)", percent(part["accuracy"][0]), "", ""]]
    for i, task in enumerate(tasks):
        changes = [percent(part[key][i], signed=True) for key in ("plasticity", "stability")]
        rows.append([task, percent(part["accuracy"][i + 1]), *changes])
    return Table(
        "Probe accuracy on all tasks after each (%)",
        ["after", "accuracy", "plasticity", "stability"],
        rows,
    )


def pictures(part: Part, tasks: Sequence[str]) -> list[Picture]:
    steps, names = ["(pre-trained)", *tasks][: TASKS + 1], tasks[:TASKS]
    accuracy = {"all tasks": array(part["accuracy"])[: TASKS + 1]}
    changes = {key: array(part[key])[:TASKS] for key in ("plasticity", "stability")}
    over_steps = figures.lines(accuracy, steps, "probe accuracy, %", percent=True)
    subset = array(part["subset"])[: TASKS + 1, :TASKS]
    of_tasks = figures.bars(changes, names, "points", percent=True)
    caption = "Probe accuracy, %: after this task (row) × on that"
    return drawn(
        [
            series(over_steps, "Probe accuracy on all tasks", steps, accuracy),
            heat_map(caption, subset, steps, names, limits=(0.0, 1.0), percent=True),
            series(
                of_tasks,
                "Plasticity (while a task is learned) and stability (after it)",
                names,
                changes,
            ),
        ]
    )


DIAGNOSTIC = Diagnostic(
    position=4,
    title="Probes: what a linear classifier reads from the features",
    reading=READING,
    axes={"accuracy": "s", "subset": "st", "plasticity": "t", "stability": "t"},
    table=table,
    pictures=pictures,
    reads_examples=True,
)
