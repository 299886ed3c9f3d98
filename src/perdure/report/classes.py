"""Answers by class: recall, and the classes that each was mistaken for."""

from collections import Counter
from collections.abc import Mapping

import numpy as np

from perdure.report.heat_map import heat
from perdure.report.picture import Cell, Picture
from perdure.report.plain import Record
from perdure.runs.layout import Answers

ALL = 50
"""The most classes that are shown one by one, with their confusion."""
WORST = 10
"""The number of classes shown otherwise: those with the lowest recall."""


def examples(answers: Answers) -> dict[str, int]:
    """Return the number of test examples of each task that is answered with classes."""
    counts: dict[str, int] = {}
    # Every way to know the task was measured on the same examples, so the last one read will do.
    for tasks in answers.values():
        for task, classes in tasks.items():
            totals = [sum(answered.values()) for answered in classes.values()]
            if totals:  # free texts are not counted
                counts[task] = sum(totals)
    return counts


def summarise(answers: Answers) -> Record:
    """Return, for each `task_id`, how often each class was answered with each class.

    Classes of the same name in several tasks are one class. If there are more than 50, only the
    ten with the lowest recall are kept.
    """
    return {task_id: _of_way(tasks) for task_id, tasks in answers.items()}


def _of_way(tasks: Mapping[str, Mapping[str, Mapping[str, int]]]) -> Record:
    # `update` of a `Counter` adds up what several tasks have answered for the same class.
    together: dict[str, Counter[str]] = {}
    for classes in tasks.values():
        for true, answered in classes.items():
            counter = together.setdefault(true, Counter())
            counter.update(answered)
    rows = [_of_class(true, answered) for true, answered in together.items()]
    count = len(rows)
    if count > ALL:
        # The sort is stable: of equal recall, the class that was learned first stays first.
        rows.sort(key=lambda row: row["recall"])
        rows = rows[:WORST]
    return {"count": count, "classes": rows}


def _of_class(true: str, answered: Counter[str]) -> Record:
    taken_for = None
    times = 0
    # The most common answer that is not the right one.
    for name, count in answered.most_common():
        if name != true:
            taken_for = name
            times = count
            break
    return {
        "name": true,
        "examples": answered.total(),
        "recall": answered[true] / answered.total(),
        "taken_for": taken_for,
        "times": times,
        "answered": dict(answered),
    }


def picture(run: Record, task_id: str, known: str) -> Picture | None:
    """Draw the confusion of a run's classes as shares of each row, beside a table of recalls."""
    answered = run["classes"].get(task_id)
    # A single class cannot be taken for another.
    if not answered or len(answered["classes"]) < 2:
        return None
    classes = answered["classes"]
    names = [entry["name"] for entry in classes]
    # A class may be taken for one that is not among the rows: then it has a column only.
    mistakes = [entry["taken_for"] for entry in classes if entry["taken_for"]]
    columns = list(dict.fromkeys([*names, *mistakes]))
    shares = np.zeros((len(names), len(columns)))
    rows: list[list[Cell]] = []
    for row, entry in enumerate(classes):
        counts = entry["answered"]
        for column, name in enumerate(columns):
            shares[row, column] = counts.get(name, 0) / entry["examples"]
        rows.append(
            [
                entry["name"],
                entry["examples"],
                entry["recall"],
                entry["taken_for"],
                entry["times"],
            ]
        )
    which = "all classes"
    if len(classes) < answered["count"]:
        which = f"the {len(classes)} of {answered['count']} classes with the lowest recall"
    return Picture(
        caption=f"True class (row) × answer, %: {which} · {known}",
        svg=heat(
            shares,
            names,
            columns,
            limits=(0.0, 1.0),
            digits=0,
        ),
        header=["class", "test examples", "recall", "most often taken for", "times"],
        rows=rows,
    )
