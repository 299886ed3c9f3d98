"""How the single classes were answered: recall, and what a class was taken for instead."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np

from perdure.report.heat_map import heat
from perdure.report.picture import Cell, Picture
from perdure.runs.layout import Answers

ALL = 50
"""The most classes that are shown one by one, with their confusion."""
WORST = 10
"""The number of classes shown otherwise: those with the lowest recall."""


def examples(answers: Answers) -> dict[str, int]:
    """Return the number of test examples of each task."""
    counts: dict[str, int] = {}
    for tasks in answers.values():
        for task, classes in tasks.items():
            counts[task] = sum(sum(answered.values()) for answered in classes.values())
    return counts


def summarise(answers: Answers) -> dict[str, Any]:
    """Return, by the way to know the task, how often each class was answered with which.

    Classes of the same name in several tasks are one class. Of more than 50 classes the ten with the lowest recall
    are kept.
    """
    return {task_id: _of_way(tasks) for task_id, tasks in answers.items()}


def _of_way(tasks: Mapping[str, Mapping[str, Mapping[str, int]]]) -> dict[str, Any]:
    together: dict[str, Counter[str]] = {}
    for classes in tasks.values():
        for true, answered in classes.items():
            together.setdefault(true, Counter()).update(answered)
    rows = [_of_class(true, answered) for true, answered in together.items()]
    if len(rows) <= ALL:
        return {"count": len(rows), "classes": rows}
    rows.sort(key=lambda row: row["recall"])
    return {"count": len(rows), "classes": rows[:WORST]}


def _of_class(true: str, answered: Counter[str]) -> dict[str, Any]:
    wrong = [(name, count) for name, count in answered.most_common() if name != true]
    taken_for, times = wrong[0] if wrong else (None, 0)
    return {
        "name": true,
        "examples": answered.total(),
        "recall": answered[true] / answered.total(),
        "taken_for": taken_for,
        "times": times,
        "answered": dict(answered),
    }


def picture(run: Mapping[str, Any], task_id: str, known: str) -> Picture | None:
    """Draw the confusion of a run's classes, each row in shares of the class; beside it a table of recalls."""
    found = run["classes"].get(task_id)
    if not found or len(found["classes"]) < 2:
        return None
    classes = found["classes"]
    names = [one["name"] for one in classes]
    columns = list(
        dict.fromkeys([*names, *(one["taken_for"] for one in classes if one["taken_for"])])
    )
    shares = np.zeros((len(names), len(columns)))
    rows: list[list[Cell]] = []
    for row, one in enumerate(classes):
        for column, name in enumerate(columns):
            shares[row, column] = one["answered"].get(name, 0) / one["examples"]
        rows.append([one["name"], one["examples"], one["recall"], one["taken_for"], one["times"]])
    image = heat(shares, names, columns, limits=(0.0, 1.0), digits=0)
    few = len(classes) < found["count"]
    which = (
        f"the {len(classes)} of {found['count']} classes with the lowest recall"
        if few
        else "all classes"
    )
    header = ["class", "test examples", "recall", "most often taken for", "times"]
    return Picture(f"True class (row) × answer, %: {which} · {known}", image, header, rows)
