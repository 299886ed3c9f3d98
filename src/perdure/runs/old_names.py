"""Names used by older run folders and recipes, and their current equivalents."""

from typing import Any

TASK_IDS = {"concatenated": "none"}
"""The current name of each `task_id` that was renamed in 0.3, by its old name."""


def task_id(name: str) -> str:
    """Return the current name of a `task_id`."""
    return TASK_IDS.get(name, name)


def recipe(values: dict[str, Any]) -> dict[str, Any]:
    """Return a recipe with old names replaced by current ones."""
    # The recipe has not been checked yet, so any part may be missing or of another type.
    evaluation = values.get("evaluation") if isinstance(values, dict) else None
    if not isinstance(evaluation, dict):
        return values
    task_ids = evaluation.get("task_ids")
    if not isinstance(task_ids, list) or not TASK_IDS.keys() & {*map(str, task_ids)}:
        return values
    task_ids = [TASK_IDS.get(name, name) for name in task_ids]
    return values | {"evaluation": evaluation | {"task_ids": task_ids}}
