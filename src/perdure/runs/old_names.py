"""Names that older run folders and recipes use, in today's words."""

from typing import Any

TASK_IDS = {"concatenated": "none"}
"""The ways to know the task whose name has changed, by their name before 0.3."""


def task_id(name: str) -> str:
    """Return today's name of a way to know the task."""
    return TASK_IDS.get(name, name)


def recipe(values: dict[str, Any]) -> dict[str, Any]:
    """Return a recipe in today's words."""
    # The recipe is not checked yet, so any of this may be missing or something else.
    evaluation = values.get("evaluation") if isinstance(values, dict) else None
    if not isinstance(evaluation, dict):
        return values
    task_ids = evaluation.get("task_ids")
    if not isinstance(task_ids, list) or not TASK_IDS.keys() & {*map(str, task_ids)}:
        return values
    task_ids = [TASK_IDS.get(name, name) for name in task_ids]
    return values | {"evaluation": evaluation | {"task_ids": task_ids}}
