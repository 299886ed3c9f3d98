"""The answers for each class: its recall, and the classes for which it was mistaken."""

from collections import Counter
from collections.abc import Mapping

import numpy as np

from perdure.report.heat_map import heat
from perdure.report.picture import Cell, Picture
from perdure.report.plain import Record
from perdure.runs.derived import Answers

ALL = 50
"""Up to this number of classes, all of them are shown."""
WORST = 10
"""If there are more than `ALL` classes, only this number is shown: those with the lowest recall."""


def examples(answers: Answers) -> dict[str, int]:
    """Return the number of test examples of each task that is answered with classes."""
    counts: dict[str, int] = {}
    # Each `task_id` was measured on the same examples, so any of them will do.
    for tasks in answers.values():
        for task, classes in tasks.items():
            totals = [sum(answered.values()) for answered in classes.values()]
            if totals:  # free texts are not counted
                counts[task] = sum(totals)
    return counts


def summarise(answers: Answers) -> Record:
    """Return, for each `task_id`, the recall of each class and how often each answer was given.

    Classes with the same name in several tasks are treated as one class. If there are
    more than 50 classes, only the ten with the lowest recall are returned.
    """
    return {task_id: _of_way(tasks) for task_id, tasks in answers.items()}


def _of_way(tasks: Mapping[str, Mapping[str, Mapping[str, int]]]) -> Record:
    # `Counter.update` adds up the answers for a class that is in several tasks.
    together: dict[str, Counter[str]] = {}
    for classes in tasks.values():
        for true, answered in classes.items():
            counter = together.setdefault(true, Counter())
            counter.update(answered)
    rows = [_of_class(true, answered) for true, answered in together.items()]
    count = len(rows)
    if count > ALL:
        # The sort is stable: among classes with equal recall, the one learned first stays first.
        rows.sort(key=lambda row: row["recall"])
        rows = rows[:WORST]
    return {"count": count, "classes": rows}


def _of_class(true: str, answered: Counter[str]) -> Record:
    taken_for = None
    times = 0
    # The most common wrong answer.
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
    """Draw the confusion matrix of a run's classes in shares of each row, with a table of recalls.

    Return None if fewer than two classes were measured.
    """
    answered = run["classes"].get(task_id)
    # A single class cannot be mistaken for another.
    if not answered or len(answered["classes"]) < 2:
        return None
    classes = answered["classes"]
    names = [entry["name"] for entry in classes]
    # A class may be mistaken for one that is not among the rows, which gets only a column.
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
