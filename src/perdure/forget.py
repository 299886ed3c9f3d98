"""Take a task out of a run again."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from perdure.errors import InputError, UnknownName
from perdure.recipe import Recipe
from perdure.restore import check_same
from perdure.results import Run
from perdure.run import go_on, made_in_python
from perdure.stream import TaskStream


@dataclass(frozen=True)
class Forgotten:
    """What came of it.

    Attributes
    ----------
    task
        Its name.
    traces
        The tasks learned after it, in which something of it remains: none where tasks are isolated.
    why
        How it came into them.
    relearned
        The tasks that were learned again without it.
    """

    task: str
    traces: tuple[str, ...] = ()
    why: str = ""
    relearned: tuple[str, ...] = ()

    def __str__(self) -> str:
        gone = f"`{self.task}` is forgotten: its adapter, head and statistics are gone, and all that was measured of it"
        if self.relearned:
            return f"{gone}. Learned again without it: {', '.join(self.relearned)}."
        gone = f"{gone} or with it. `perdure evaluate` measures what is left."
        if not self.traces:
            return f"{gone} The other tasks are as if it had never been learned."
        return (
            f"{gone}\nWhat remains of it: {self.why} of {', '.join(self.traces)}. To learn those again without it, use "
            "`--retrain-later` before a task is forgotten (it needs their examples)."
        )


def forget(
    folder: str | Path,
    task: str,
    *,
    retrain_later: bool = False,
    stream: TaskStream | None = None,
    quiet: bool = True,
) -> Forgotten:
    """Remove a task from a run: its adapter, its head, its statistics, and what was measured of it or with it.

    Where tasks are isolated, the run is then the one, bit for bit, that never learned it. Where later tasks were
    learned on top of it, something of it remains in them, unless they are learned again.

    Parameters
    ----------
    retrain_later
        Learn the tasks after it again, without it, if something of it would remain in them.
    stream
        The tasks without it, where the run's recipe does not say how they are made; for `retrain_later`.

    Raises
    ------
    UnknownName
        The run has not learned this task.
    RunError
        Another process is writing the run, or the examples for learning again are not those of before.
    """
    results = Run(folder)
    with results.writing():
        names = results.tasks
        if task not in names:
            raise UnknownName("task", task, names)
        later, why = names[names.index(task) + 1 :], dependence(results.recipe)
        recipe = without(results.recipe, task)
        if not (retrain_later and later and why):
            results.forget(task, recipe)
            return Forgotten(task, tuple(later) if why else (), why)
        plan = Recipe.parse(recipe).plan(stream)
        check_same([results.load_task(name) for name in names if name != task], plan.stream)
        for name in reversed(later):
            results.remove_task(name)
        results.forget(task, recipe)
        go_on(results, plan, quiet=quiet)
        return Forgotten(task, relearned=tuple(later))


def dependence(recipe: dict[str, Any]) -> str:
    """What of later tasks depends on earlier ones; empty where tasks are isolated."""
    try:
        isolates = Recipe.parse(recipe).make_method().isolates
    except InputError:  # a method that is not here says nothing
        isolates = False
    if not isolates:
        return "the adapters and heads"
    return "the aligned heads" if recipe["training"].get("alignment") else ""


def without(recipe: dict[str, Any], task: str) -> dict[str, Any]:
    """A recipe that has forgotten a task."""
    stream, rule = recipe["stream"], dict(recipe["rule"])
    if isinstance(rule.get("scale"), dict):
        rule["scale"] = {name: value for name, value in rule["scale"].items() if name != task}
    if made_in_python(recipe):
        stream = {**stream, "tasks_made_in_python": _less(stream["tasks_made_in_python"], task)}
    elif isinstance(stream, list):  # an entry of this task alone is no longer read
        stream = [entry for entry in stream if _only_task(entry) != task]
    return recipe | {"stream": stream, "rule": rule, "forgotten": [*_less(recipe.get("forgotten", []), task), task]}


def _less(names: Sequence[str], task: str) -> list[str]:
    return [name for name in names if name != task]


def _only_task(entry: dict[str, Any]) -> str | None:
    """The name of the one task of a table; nothing if it may have several."""
    if "data" not in entry or entry.get("task"):
        return None
    return entry.get("name") or Path(str(entry["data"])).stem
