"""Remove a task from a run: first from its recipe, then from its folder.

A task counts as forgotten once a recipe that lists it under `forgotten` has been written.
If the process dies after that, the next process that writes to the run calls `finish`.
The command itself is in `runs/extend.py`, because it can also learn tasks again.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from perdure.errors import InputError
from perdure.merging.rule_settings import label
from perdure.runs import layout, put
from perdure.runs.job import make_method
from perdure.runs.layout import Settings
from perdure.runs.past import only_task
from perdure.runs.state import RunState, read


@dataclass(frozen=True)
class Forgotten:
    """The result of forgetting a task.

    Attributes
    ----------
    task
        The name of the task.
    traces
        The tasks that contain traces of it; empty if tasks are isolated.
    why
        The parts of later tasks that contain the traces, in words.
    relearned
        The tasks that were learned again without it.
    left
        All tasks that the run still has.
    """

    task: str
    traces: tuple[str, ...] = ()
    why: str = ""
    relearned: tuple[str, ...] = ()
    left: tuple[str, ...] = ()

    def __str__(self) -> str:
        gone = (
            f"`{self.task}` is forgotten: its adapter, head and statistics are gone, "
            "and everything that was measured on it"
        )
        if self.relearned:
            return f"{gone}.\nLearned again without it: {', '.join(self.relearned)}."
        gone = f"{gone} or with it."
        if not self.left:
            return (
                f"{gone}\nThe run has learned no other task. "
                "Use `perdure run` or `perdure learn` to teach it one."
            )
        if not self.traces:
            return (
                f"{gone}\nThe other tasks are as if it had never been learned. "
                "`perdure evaluate` measures them."
            )
        return (
            f"{gone}\nTraces of it remain in {', '.join(self.traces)}: "
            f"{self.why} were learned on top of it,\n"
            "and they may contain its head, as they trained it further. "
            "These traces are not used to answer.\n"
            "To learn these tasks again without it, repeat the command with `--retrain-later` "
            "(which needs their examples)."
        )


# -- the recipe


def dependence(recipe: Settings) -> str:
    """Return the parts of later tasks that depend on earlier ones; empty if tasks are isolated."""
    try:
        isolates = make_method(recipe["method"]).isolates
    except InputError:
        # The method's code is not installed here. Assume that there are traces, rather
        # than promise that there are none.
        isolates = False
    if not isolates:
        return "their adapters, heads and states (and examples, where a method keeps some)"
    if recipe["training"].get("heads") == "shared":
        return "their shared heads"
    return "their aligned heads" if recipe["training"].get("alignment") else ""


def without(
    recipe: Settings, task: str, learned: Sequence[str], *, leaves_traces: bool
) -> Settings:
    """Return a recipe from which a task has been removed as forgotten.

    Parameters
    ----------
    learned
        The names of the tasks learned so far, which may or may not include `task`.
    leaves_traces
        True if tasks that were learned later contain traces of `task`.
    """
    rule = dict(recipe["rule"])
    if isinstance(rule.get("scale"), dict):
        rule["scale"] = {name: scale for name, scale in rule["scale"].items() if name != task}
    traces: dict[str, int] = dict(recipe.get("traces") or {})
    if task in learned:
        index = learned.index(task)
        # Later tasks move up by one, and so do the positions at which older traces begin.
        traces = {name: first - (first > index) for name, first in traces.items()}
        if leaves_traces:
            # The task may have been forgotten before, leaving traces, and then learned again.
            traces[task] = min(index, traces.get(task, index))
    remaining = len(less(learned, task))
    traces = {name: first for name, first in traces.items() if first < remaining}
    changed = {
        "stream": _stream_without(recipe["stream"], task),
        "rule": rule,
        "forgotten": [*less(recipe.get("forgotten") or [], task), task],
    }
    return traced(recipe | changed, traces)


def _stream_without(stream: object, task: str) -> object:
    """Return a recipe's stream without a task, and without any table read only for this task."""
    if isinstance(stream, dict) and "tasks_made_in_python" in stream:
        return {**stream, "tasks_made_in_python": less(stream["tasks_made_in_python"], task)}
    if isinstance(stream, list):
        return [entry for entry in stream if only_task(entry) != task]
    return stream


def traced(recipe: Settings, traces: Mapping[str, int]) -> Settings:
    """Return a recipe with the given traces, or without the key `traces` if there are none.

    Parameters
    ----------
    traces
        For each forgotten task, the index of the first learned task that may contain traces of it.
    """
    # No empty entry: the recipe must be identical to that of a run that never forgot anything.
    settings = {key: value for key, value in recipe.items() if key != "traces"}
    return settings | ({"traces": dict(traces)} if traces else {})


def less(names: Sequence[str], task: str) -> list[str]:
    """Return a list of names without the given one."""
    return [name for name in names if name != task]


def check_boundaries(recipe: Settings, command: str) -> None:
    """Raise `InputError` if the tasks of a run have no boundaries.

    Parameters
    ----------
    command
        The command that needs boundaries, which the message names.
    """
    if recipe.get("graduated") is not None:
        raise InputError(
            f"`{command}` needs tasks with boundaries, but those of this run, which has learned a "
            "graduated stream, have none: traces of every task remain in the modules, the head "
            "and the states of all others, earlier ones included. Start a new run with another "
            "stream."
        )


# -- the folder


def finish(folder: Path) -> None:
    """Remove the folders and measurements of all tasks that the recipe lists as forgotten."""
    state = read(folder)
    forgotten = set(layout.forgotten(state.recipe))
    present = layout.task_folders(folder, [])
    leftover = [name for name in present if name in forgotten]
    if leftover:
        _drop_derived(folder)
        put.removed(folder / layout.UNFINISHED)
    # Remove the task's folder last: as long as it exists, another process sees what is left to do.
    for name in reversed(leftover):
        # Step 0 is dropped, too: it was measured with the heads of all tasks in the stream.
        steps = range(1, list(present).index(name) + 1)
        _drop_values(folder, name, steps)
        _combine_without(folder, name, steps)
        put.removed(present[name])
    _renumber(folder)
    if leftover:
        _drop_derived(folder)  # a report may have been written meanwhile
    _drop_traces(folder, state)


def _drop_traces(folder: Path, state: RunState) -> None:
    """Remove traces from the recipe that no remaining task contains."""
    traces = state.recipe.get("traces") or {}
    remaining = {name: first for name, first in traces.items() if first < len(state.tasks)}
    if remaining != traces:
        put.recipe(folder, state.recipe | {"traces": remaining})


def remove_last(folder: Path, name: str) -> None:
    """Remove the last learned task from a run, and everything that was measured with it."""
    state = read(folder)
    put.removed(folder / layout.UNFINISHED)
    _drop_values(folder, name, range(len(state.tasks)))
    _drop_derived(folder)
    put.removed(state.places[name])  # from here on, the task is gone
    _drop_derived(folder)  # a report may have been written meanwhile


def _drop_derived(folder: Path) -> None:
    """Remove all derived files, because they may show tasks that are gone."""
    for name in layout.DERIVED:
        put.removed(folder / name)


def _drop_values(folder: Path, name: str, steps: Collection[int]) -> None:
    """Drop all scores and events that depend on a task.

    Scores of other tasks are kept if they were measured at one of `steps`, before the
    task was learned, with a rule that does not name the task.
    """
    rows = []
    for row in layout.scores(folder):
        if row["task"] != name and _is_independent(row, name, steps):
            rows.append(row)
    put.scores(folder, rows)
    events = []
    for event in layout.events(folder):
        if event.get("task") == name:
            continue
        # Losses and times of other tasks stay; only what was measured can depend on this task.
        if event.get("event") != "evaluation" or _is_independent(event, name, steps):
            events.append(event)
    put.events(folder, events)


def _is_independent(measured: Mapping[str, object], name: str, steps: Collection[int]) -> bool:
    """Return True if a measurement is from one of `steps`, and its rule does not name the task."""
    # The label of a rule with a scale for each task names the tasks, as in a Python dict.
    return measured.get("step") in steps and f"'{name}':" not in str(measured.get("rule"))


def _combine_without(folder: Path, name: str, steps: Collection[int]) -> None:
    """Remove a task's scale from `combined.json`, and any scale found in a search with the task."""
    state = read(folder)
    path = folder / "combined.json"
    if not state.tasks or not layout.is_there(path):
        put.removed(path)
        return
    rule = state.combined
    # Searches from before the task was learned are still valid.
    searches = [search for search in state.searches if _is_independent(search, name, steps)]
    rule["searches"] = searches
    options = rule["options"]
    scales = options.get("scale")
    if rule["candidates"]:
        # The current scale was found with the task. Go back to the one that was found for
        # the remaining tasks, or to none, until the run is measured again.
        options.pop("scale", None)
        rule["candidates"] = []
        for search in searches:
            if (search["rule"], search["step"]) == (rule["label"], len(state.tasks)):
                rule["options"] = search["options"]
                rule["candidates"] = search["candidates"]
                break
    elif isinstance(scales, dict) and scales.pop(name, None) is not None:
        rule["label"] = label(rule["name"], options, rule["space"], rule["since"])
    put.combined(folder, rule)


def _renumber(folder: Path) -> None:
    """Renumber the task folders as if the removed tasks had never existed."""
    for number, (name, path) in enumerate(read(folder).places.items()):
        renamed = path.with_name(f"{number:02d}-{name}")
        if path != renamed:
            put.renamed(path, renamed)
