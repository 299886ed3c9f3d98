"""Names used by older run folders and recipes, and their current equivalents."""

from typing import Any

TASK_IDS = {"concatenated": "none"}
"""The renamed `task_id`s, by their name before 0.3."""


def task_id(name: str) -> str:
    """Return the current name of a `task_id`."""
    return TASK_IDS.get(name, name)


def recipe(values: dict[str, Any]) -> dict[str, Any]:
    """Return a recipe with current names."""
    # The recipe is not checked yet, so any of this may be missing or something else.
    evaluation = values.get("evaluation") if isinstance(values, dict) else None
    if not isinstance(evaluation, dict):
        return values
    task_ids = evaluation.get("task_ids")
    if not isinstance(task_ids, list) or not TASK_IDS.keys() & {*map(str, task_ids)}:
        return values
    task_ids = [TASK_IDS.get(name, name) for name in task_ids]
    return values | {"evaluation": evaluation | {"task_ids": task_ids}}
