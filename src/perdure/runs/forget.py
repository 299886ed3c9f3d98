"""Take a task out of a run again."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from perdure.data.task import TaskStream
from perdure.errors import InputError, PerdureError, RunError, UnknownName
from perdure.learning import engine
from perdure.runs.folder import Run
from perdure.runs.job import Plan, check_examples
from perdure.runs.layout import forgotten
from perdure.runs.past import only_task
from perdure.runs.recipe import Recipe
from perdure.runs.resume import check_same
from perdure.runs.story import go_on, made_in_python


@dataclass(frozen=True)
class Forgotten:
    """What came of it.

    Attributes
    ----------
    task
        Its name.
    traces
        The tasks in which something of it remains: none where tasks are isolated.
    why
        How it came into them.
    relearned
        The tasks that were learned again without it.
    left
        All tasks that the run has now.
    """

    task: str
    traces: tuple[str, ...] = ()
    why: str = ""
    relearned: tuple[str, ...] = ()
    left: tuple[str, ...] = ()

    def __str__(self) -> str:
        gone = f"`{self.task}` is forgotten: its adapter, head and statistics are gone, and all that was measured of it"
        if self.relearned:
            return f"{gone}.\nLearned again without it: {', '.join(self.relearned)}."
        gone = f"{gone} or with it."
        if not self.left:
            return f"{gone}\nThe run has learned no other task. `perdure run` or `perdure learn` teaches it one."
        if not self.traces:
            return f"{gone}\nThe other tasks are as if it had never been learned. `perdure evaluate` measures them."
        return (
            f"{gone}\nSomething of it remains in {', '.join(self.traces)}: {self.why} were learned on top of it,\n"
            "and they may keep its head as they trained it on. What remains is not used to answer.\n"
            "To learn these again without it, give the same command with `--retrain-later` (it needs their examples)."
        )


def forget(
    folder: str | Path,
    task: str,
    *,
    retrain_later: bool = False,
    stream: TaskStream | None = None,
    trust: bool = False,
    quiet: bool = True,
) -> Forgotten:
    """Remove a task from a run: its adapter, its head, its statistics, and what was measured of it or with it.

    Where tasks are isolated, the run is then the one, bit for bit, that never learned it. Where later tasks were
    learned on top of it, something of it remains in them, until they are learned again.

    Parameters
    ----------
    task
        One that the run has learned, or was to learn; or one that was forgotten, to learn again what it left traces in.
    retrain_later
        Learn the tasks again in which something of it would remain.
    stream
        The tasks, where the run's recipe does not say how they are made; for `retrain_later`.
    trust
        Whether Python files that the run's recipe names may be run.

    Raises
    ------
    UnknownName
        The run has no such task.
    RunError
        Another process is writing the run, or the examples for learning again are not those of before.
    Stopped
        The run was asked to stop. The task is forgotten, and the run can go on.
    """
    if engine.count() > 1:
        raise InputError("`forget` is for one process: start it without `accelerate launch` or `torchrun`.")
    results = Run(folder, trust=trust)
    with results.writing():
        recipe, names = results.recipe, results.tasks
        if task not in forgotten(recipe) and task not in names and task not in _planned(results):
            raise UnknownName("task", task, names)
        why = dependence(recipe)
        recipe = without(recipe, task, names, leaves_traces=bool(why))
        left, places = _less(names, task), recipe.get("traces", {})
        traces = tuple(left[places[task] :]) if task in places else ()
        plan = None
        if traces and retrain_later:
            stream = stream and replace(stream, tasks=tuple(other for other in stream if other.name != task))
            plan = _plan(results, recipe, stream, left, kept=places[task])
        _take_out(results, task, recipe)
        if not plan:
            return Forgotten(task, traces, why, left=tuple(left))
        for name in reversed(traces):
            results.remove_task(name)
        results.recipe = _traced(recipe, {name: n for name, n in places.items() if n < places[task]})
        go_on(results, plan, quiet=quiet)
        return Forgotten(task, relearned=traces, left=tuple(results.tasks))


def _take_out(results: Run, task: str, recipe: dict[str, Any]) -> None:
    if task in results.tasks:
        results.forget(task, recipe)
        return
    if results.begun() == task:
        results.trim_events(None, 0)
        results.drop_unfinished()
    results.recipe = recipe


def _plan(results: Run, recipe: dict[str, Any], stream: TaskStream | None, left: Sequence[str], *, kept: int) -> Plan:
    """What is needed to learn all tasks that are `left` again but for the first `kept`, checked beforehand."""
    plan = Recipe.parse(recipe).plan(stream, run=results)
    check_same([results.load_task(name) for name in left], plan.stream)
    steps = range(1, len(plan.stream) + 1)
    check_examples(plan, kept, [step for step in steps if plan.evaluation.due(step, len(plan.stream))])
    return plan


def _planned(results: Run) -> list[str]:
    """The names of the tasks that the run is to learn, if they can be had."""
    recipe = results.recipe
    if made_in_python(recipe):
        return recipe["stream"]["tasks_made_in_python"]
    try:
        return Recipe.parse(recipe).make_stream(results).names
    except RunError:  # it needs code that is not trusted: that is no reason to know less of the run
        raise
    except PerdureError:  # the data is not here
        return []


def dependence(recipe: dict[str, Any]) -> str:
    """What of later tasks depends on earlier ones; empty where tasks are isolated."""
    try:
        isolates = Recipe.parse(recipe).make_method().isolates
    except InputError:  # a method that is not here says nothing
        isolates = False
    if not isolates:
        return "their adapters, heads and states (and examples, where a method keeps some)"
    if recipe["training"].get("heads") == "shared":
        return "their shared heads"
    return "their aligned heads" if recipe["training"].get("alignment") else ""


def without(recipe: dict[str, Any], task: str, learned: Sequence[str], *, leaves_traces: bool) -> dict[str, Any]:
    """A recipe that has forgotten a task; `learned` are those before that."""
    stream, rule = recipe["stream"], dict(recipe["rule"])
    if isinstance(rule.get("scale"), dict):
        rule["scale"] = {name: value for name, value in rule["scale"].items() if name != task}
    if made_in_python(recipe):
        stream = {**stream, "tasks_made_in_python": _less(stream["tasks_made_in_python"], task)}
    elif isinstance(stream, list):  # an entry of this task alone is no longer read
        stream = [entry for entry in stream if only_task(entry) != task]
    places: dict[str, int] = dict(recipe.get("traces") or {})
    if task in learned:
        place = learned.index(task)
        places = {name: n - (n > place) for name, n in places.items()}
        if leaves_traces:  # it may have left some before, and have been learned again
            places[task] = min(place, places.get(task, place))
    places = {name: n for name, n in places.items() if n < len(_less(learned, task))}
    gone = [*_less(recipe.get("forgotten") or [], task), task]
    return _traced(recipe | {"stream": stream, "rule": rule, "forgotten": gone}, places)


def _traced(recipe: dict[str, Any], places: dict[str, int]) -> dict[str, Any]:
    """A recipe with these traces; without the entry if there are none, as when nothing was ever forgotten."""
    kept = {key: value for key, value in recipe.items() if key != "traces"}
    return kept | ({"traces": places} if places else {})


def _less(names: Sequence[str], task: str) -> list[str]:
    return [name for name in names if name != task]
