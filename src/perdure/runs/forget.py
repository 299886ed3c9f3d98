"""Remove a task from a run: first from its recipe, then from its folder.

The decisive moment is the writing of a recipe that lists the task as `forgotten`. If the
process dies after that, the next process that writes the run calls `finish`. The command itself
is in `runs/extend.py`, because it can learn tasks again.
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
        Its name.
    traces
        The tasks in which it has left traces; empty if tasks are isolated.
    why
        The reason why the traces are there.
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
                "`perdure run` or `perdure learn` teaches it one."
            )
        if not self.traces:
            return (
                f"{gone}\nThe other tasks are as if it had never been learned. "
                "`perdure evaluate` measures them."
            )
        return (
            f"{gone}\nTraces of it remain in {', '.join(self.traces)}: "
            f"{self.why} were learned on top of it,\n"
            "and they may keep its head as they trained it on. "
            "What remains is not used to answer.\n"
            "To learn these again without it, give the same command with `--retrain-later` "
            "(it needs their examples)."
        )


# -- the recipe


def dependence(recipe: Settings) -> str:
    """Return the parts of later tasks that depend on earlier ones; empty if tasks are isolated."""
    try:
        isolates = make_method(recipe["method"]).isolates
    except InputError:
        # The method's code is not installed here. Assume traces: forgetting must not claim more
        # than is known.
        isolates = False
    if not isolates:
        return "their adapters, heads and states (and examples, where a method keeps some)"
    if recipe["training"].get("heads") == "shared":
        return "their shared heads"
    return "their aligned heads" if recipe["training"].get("alignment") else ""


def without(
    recipe: Settings, task: str, learned: Sequence[str], *, leaves_traces: bool
) -> Settings:
    """Return a recipe that has forgotten a task.

    Parameters
    ----------
    learned
        The names of the tasks that were learned so far, whether or not this one is among them.
    leaves_traces
        True if the task leaves traces in those learned after it.
    """
    rule = dict(recipe["rule"])
    if isinstance(rule.get("scale"), dict):
        rule["scale"] = {name: scale for name, scale in rule["scale"].items() if name != task}
    traces: dict[str, int] = dict(recipe.get("traces") or {})
    if task in learned:
        index = learned.index(task)
        # The tasks behind it move up by one, and with them where older traces begin.
        traces = {name: first - (first > index) for name, first in traces.items()}
        if leaves_traces:
            # It may have left traces before, and have been learned again since.
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
    """Return a recipe's stream that neither names a task nor reads a table for it alone."""
    if isinstance(stream, dict) and "tasks_made_in_python" in stream:
        return {**stream, "tasks_made_in_python": less(stream["tasks_made_in_python"], task)}
    if isinstance(stream, list):
        return [entry for entry in stream if only_task(entry) != task]
    return stream


def traced(recipe: Settings, traces: Mapping[str, int]) -> Settings:
    """Return a recipe with these traces, or without the entry if there are none.

    Parameters
    ----------
    traces
        For each forgotten task, the index of the first learned task in which it may have left
        traces.
    """
    # No empty entry: the recipe must be the one, byte for byte, of a run that never forgot.
    settings = {key: value for key, value in recipe.items() if key != "traces"}
    return settings | ({"traces": dict(traces)} if traces else {})


def less(names: Sequence[str], task: str) -> list[str]:
    """Return the names without that of a task."""
    return [name for name in names if name != task]


# -- the folder


def finish(folder: Path) -> None:
    """Remove the folders and measurements of tasks that the recipe lists as forgotten."""
    state = read(folder)
    forgotten = set(layout.forgotten(state.recipe))
    present = layout.task_folders(folder, [])
    leftover = [name for name in present if name in forgotten]
    if leftover:
        _drop_derived(folder)
        put.removed(folder / layout.UNFINISHED)
    # The task's folder goes last: while it exists, the next process knows that there is work left.
    for name in reversed(leftover):
        # Step 0 goes, too: before anything was learned, all heads of the stream were asked.
        steps = range(1, list(present).index(name) + 1)
        _drop_values(folder, name, steps)
        _combine_without(folder, name, steps)
        put.removed(present[name])
    _renumber(folder)
    if leftover:
        _drop_derived(folder)  # a report may have been written meanwhile
    _drop_traces(folder, state)


def _drop_traces(folder: Path, state: RunState) -> None:
    """Remove traces from the recipe that no task contains any more."""
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
    put.removed(state.places[name])  # with its folder the task is gone
    _drop_derived(folder)  # a report may have been written meanwhile


def _drop_derived(folder: Path) -> None:
    """Remove the files that were made from others, which may show tasks that are gone."""
    for name in layout.DERIVED:
        put.removed(folder / name)


def _drop_values(folder: Path, name: str, steps: Collection[int]) -> None:
    """Keep the scores and events of other tasks, if measured after one of these `steps`."""
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
    """Return True if something was measured without a task, after one of these `steps`."""
    # A rule with a scale for each task names the task in its label, as Python writes a dict.
    return measured.get("step") in steps and f"'{name}':" not in str(measured.get("rule"))


def _combine_without(folder: Path, name: str, steps: Collection[int]) -> None:
    """Remove a task from `combined.json`: its scale, and any scale found with it."""
    state = read(folder)
    path = folder / "combined.json"
    if not state.tasks or not layout.is_there(path):
        put.removed(path)
        return
    rule = state.combined
    # Searches from before the task was learned are still true.
    searches = [search for search in state.searches if _is_independent(search, name, steps)]
    rule["searches"] = searches
    options = rule["options"]
    scales = options.get("scale")
    if rule["candidates"]:
        # The scale in use was searched with the task. Go back to the one that was found for the
        # tasks that are left, or else to none, until the run is measured again.
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
    """Renumber the tasks' folders as if the others had never existed."""
    for number, (name, path) in enumerate(read(folder).places.items()):
        renamed = path.with_name(f"{number:02d}-{name}")
        if path != renamed:
            put.renamed(path, renamed)
