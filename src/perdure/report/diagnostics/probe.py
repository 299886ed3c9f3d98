"""The table and the figures of the diagnostic `probe`, on classifiers trained on features."""

from collections.abc import Sequence

from perdure.report.diagnostics.parts import figures
from perdure.report.diagnostics.parts.declaration import Diagnostic, Part, Table
from perdure.report.diagnostics.parts.numbers import array
from perdure.report.diagnostics.parts.pictures import TASKS, drawn, heat_map, series
from perdure.report.markdown import percent
from perdure.report.picture import Picture

READING = (
    "An analysis with the training data of all tasks, not a method: at each step, a new linear "
    "classifier is trained on the frozen features. If its accuracy rises, the features have "
    "improved; if it is flat, they are stable but not plastic; if it falls, something was lost."
)
CHANGES = ("plasticity", "stability")


def table(numbers: Part, tasks: Sequence[str]) -> Table:
    """Return the table for the terminal, with a row for each step."""
    rows = [["(pre-trained)", percent(numbers["accuracy"][0]), "", ""]]
    # The first step is before any task, so the step after a task is one more than its number.
    for number, task in enumerate(tasks):
        accuracy = percent(numbers["accuracy"][number + 1])
        changes = [percent(numbers[key][number], signed=True) for key in CHANGES]
        rows.append([task, accuracy, *changes])
    return Table(
        title="Probe accuracy on all tasks after each (%)",
        header=["after", "accuracy", *CHANGES],
        rows=rows,
    )


def pictures(numbers: Part, tasks: Sequence[str]) -> list[Picture]:
    """Return figures of the accuracy over the steps, the accuracy on each task, and its changes."""
    names = tasks[:TASKS]
    steps = ["(pre-trained)", *names]
    accuracy = {"all tasks": array(numbers["accuracy"])[: TASKS + 1]}
    over_steps = series(
        figures.lines(
            accuracy,
            steps,
            "probe accuracy, %",
            percent=True,
        ),
        "Probe accuracy on all tasks",
        steps,
        accuracy,
    )
    by_task = heat_map(
        "Probe accuracy, %: after this task (row) × on that",
        array(numbers["subset"])[: TASKS + 1, :TASKS],
        steps,
        names,
        limits=(0.0, 1.0),
        percent=True,
    )
    changes = {key: array(numbers[key])[:TASKS] for key in CHANGES}
    of_tasks = series(
        figures.bars(
            changes,
            names,
            "points",
            percent=True,
        ),
        "Plasticity (while a task is learned) and stability (after it)",
        names,
        changes,
    )
    return drawn([over_steps, by_task, of_tasks])


DIAGNOSTIC = Diagnostic(
    position=4,
    title="Probes: what a linear classifier reads from the features",
    reading=READING,
    axes={"accuracy": "s", "subset": "st", "plasticity": "t", "stability": "t"},
    table=table,
    pictures=pictures,
    reads_examples=True,
)
