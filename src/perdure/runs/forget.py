"""Take a task out of a run again: out of its recipe, and then out of its folder.

The moment that counts is the writing of a recipe that lists the task as `forgotten`. Should the process
die then, `finish` is called by whoever writes the run next. The command is in `runs/extend.py`, because it can
learn tasks again.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from perdure.errors import InputError
from perdure.merging.rule_settings import label
from perdure.runs import layout, put
from perdure.runs.job import make_method
from perdure.runs.past import only_task
from perdure.runs.state import read


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


# -- the recipe


def dependence(recipe: dict[str, Any]) -> str:
    """What of later tasks depends on earlier ones; empty where tasks are isolated."""
    try:
        isolates = make_method(recipe["method"]).isolates
    except InputError:  # a method that is not here says nothing
        isolates = False
    if not isolates:
        return "their adapters, heads and states (and examples, where a method keeps some)"
    if recipe["training"].get("heads") == "shared":
        return "their shared heads"
    return "their aligned heads" if recipe["training"].get("alignment") else ""


def without(
    recipe: dict[str, Any], task: str, learned: Sequence[str], *, leaves_traces: bool
) -> dict[str, Any]:
    """A recipe that has forgotten a task; `learned` are those before that."""
    stream, rule = recipe["stream"], dict(recipe["rule"])
    if isinstance(rule.get("scale"), dict):
        rule["scale"] = {name: value for name, value in rule["scale"].items() if name != task}
    if isinstance(stream, dict) and "tasks_made_in_python" in stream:
        stream = {**stream, "tasks_made_in_python": less(stream["tasks_made_in_python"], task)}
    elif isinstance(stream, list):  # an entry of this task alone is no longer read
        stream = [entry for entry in stream if only_task(entry) != task]
    places: dict[str, int] = dict(recipe.get("traces") or {})
    if task in learned:
        place = learned.index(task)
        places = {name: n - (n > place) for name, n in places.items()}
        if leaves_traces:  # it may have left some before, and have been learned again
            places[task] = min(place, places.get(task, place))
    places = {name: n for name, n in places.items() if n < len(less(learned, task))}
    gone = [*less(recipe.get("forgotten") or [], task), task]
    return traced(recipe | {"stream": stream, "rule": rule, "forgotten": gone}, places)


def traced(recipe: dict[str, Any], places: dict[str, int]) -> dict[str, Any]:
    """A recipe with these traces; without the entry if there are none, as when nothing was ever forgotten."""
    kept = {key: value for key, value in recipe.items() if key != "traces"}
    return kept | ({"traces": places} if places else {})


def less(names: Sequence[str], task: str) -> list[str]:
    """Return the names without that of a task."""
    return [name for name in names if name != task]


# -- the folder


def finish(folder: Path) -> None:
    """Remove the folders of tasks that the recipe lists as forgotten, and what was measured with them."""
    state = read(folder)
    forgotten = set(layout.forgotten(state.recipe))
    present = layout.task_folders(folder, [])
    left = [name for name in present if name in forgotten]
    if left:
        _drop_derived(folder)
        put.removed(folder / layout.UNFINISHED)
    for name in reversed(
        left
    ):  # before anything was learned, all heads of the stream were asked: no step 0
        steps = range(1, list(present).index(name) + 1)
        _drop_values(folder, name, steps)
        _combine_without(folder, name, steps)
        put.removed(present[name])
    _renumber(folder)
    if left:
        _drop_derived(folder)  # somebody may have written of them meanwhile
    traces = state.recipe.get("traces") or {}
    remaining = {name: place for name, place in traces.items() if place < len(state.tasks)}
    if remaining != traces:  # the tasks that had the others are gone
        put.recipe(folder, state.recipe | {"traces": remaining})


def remove_last(folder: Path, name: str) -> None:
    """Take the task that was learned last out of a run, with all that was measured of it or with it."""
    state = read(folder)
    put.removed(folder / layout.UNFINISHED)
    _drop_values(folder, name, range(len(state.tasks)))
    _drop_derived(folder)
    put.removed(state.places[name])  # with it the task is gone
    _drop_derived(folder)  # somebody may have written of it meanwhile


def _drop_derived(folder: Path) -> None:
    """Remove what tells of tasks that are gone."""
    for name in layout.DERIVED:
        put.removed(folder / name)


def _drop_values(folder: Path, name: str, steps: range) -> None:
    """Drop every value and event of a task, and what was measured after other numbers of tasks than `steps`."""
    rows = [
        row for row in layout.scores(folder) if row["task"] != name and _counts(row, name, steps)
    ]
    put.scores(folder, rows)
    events = []
    for event in layout.events(folder):
        of_another = event.get("task") != name
        if of_another and (event.get("event") != "evaluation" or _counts(event, name, steps)):
            events.append(event)
    put.events(folder, events)


def _counts(measured: Mapping[str, Any], name: str, steps: range) -> bool:
    """Say whether it was measured without a task; a rule with a scale for each task names it."""
    return measured.get("step") in steps and f"'{name}':" not in str(measured.get("rule"))


def _combine_without(folder: Path, name: str, steps: range) -> None:
    """A scale that was found with a task is no longer the one to use."""
    state = read(folder)
    if not state.tasks or not layout.is_there(folder / "combined.json"):
        return put.removed(folder / "combined.json")
    rule: dict[str, Any] = state.combined
    options, scales = rule["options"], rule["options"].get("scale")
    # found before that task was learned: this is still true
    searches = [search for search in state.searches if _counts(search, name, steps)]
    rule["searches"] = searches
    if rule["candidates"]:
        last = [
            search
            for search in searches
            if (search["rule"], search["step"]) == (rule["label"], len(state.tasks))
        ]
        options.pop("scale", None)
        found = last[0] if last else {"options": options, "candidates": []}
        rule["options"], rule["candidates"] = found["options"], found["candidates"]
    elif isinstance(scales, dict) and scales.pop(name, None) is not None:
        rule["label"] = label(rule["name"], options, rule["space"], rule["since"])
    put.combined(folder, rule)


def _renumber(folder: Path) -> None:
    """Give the tasks' folders the numbers that they would have had without the others."""
    for number, (name, place) in enumerate(read(folder).places.items()):
        new = place.with_name(f"{number:02d}-{name}")
        if place != new:
            put.renamed(place, new)
