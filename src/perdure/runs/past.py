"""The tasks that a run has learned, as its folder knows them: they stand in for examples that are gone.

What was learned of a task is whole in the run's folder. Its examples are needed only to measure it again, or by methods
that train on old data. So a table that was moved or deleted does not keep a run from learning more.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path
from typing import Any

from perdure.data.task import Task, TaskWithoutData
from perdure.errors import DataError, FetchError
from perdure.runs import layout
from perdure.runs.state import RunState, read
from perdure.settings import named

UNREADABLE = (DataError, FetchError, OSError)
"""What reading raises where examples are gone. A wrong setting is another error, and is never passed over."""
NAMES, REASONS = 8, 3  # of many old tables the first few say enough


@dataclass(frozen=True)
class Unreadable:
    """An entry of a stream whose examples cannot be read.

    Attributes
    ----------
    task
        The name of its one task; None where it may have several.
    error
        What reading it raised.
    """

    task: str | None
    error: Exception

    @property
    def reason(self) -> str:
        """A sentence that names what cannot be read."""
        if isinstance(self.error, OSError):
            return f"`{self.error.filename}` cannot be read: {self.error.strerror}."
        return str(self.error)


@dataclass(frozen=True)
class Past:
    """What a run's folder knows of its stream, without reading any table; empty for a run that is new.

    Attributes
    ----------
    tasks
        The tasks learned, by name, in the order of learning.
    entries
        The entries of the recipe's stream, from which they were read.
    """

    tasks: Mapping[str, TaskWithoutData] = field(default_factory=dict)
    entries: Sequence[Mapping[str, Any]] = ()

    def instead_of(self, entry: Mapping[str, Any], error: Exception) -> Unreadable:
        """Return what is put in the place of an entry that cannot be read; raise the error if the run is new."""
        if not self.tasks:
            raise error
        return Unreadable(only_task(entry), error)

    def compared(self, entry: Mapping[str, Any], tasks: Sequence[Task]) -> list[Task]:
        """Return the tasks of an entry, without the data of those whose examples are no longer those learned.

        That is for entries of the run's own recipe, behind which the data has changed. A recipe that reads other data
        is not touched: it is a mistake, and refused where the run is restored.
        """
        if _plain(entry) not in self.entries:
            return list(tasks)
        return [self._as_learned(task) for task in tasks]

    def _as_learned(self, task: Task) -> Task:
        learned = self.tasks.get(task.name)
        if learned is None or is_same(learned, task):
            return task
        return _without_data(learned, changed(task.name))

    def completed(self, parts: Sequence[Sequence[Task] | Unreadable]) -> list[Task]:
        """Return the tasks of a stream: those that were read, and those learned in the place of the others.

        An entry of several tasks stands for the tasks learned next that no other entry has.

        Raises
        ------
        DataError
            An entry cannot be read, and the run has learned none of its tasks.
        """
        named_elsewhere = set[str]()
        for part in parts:
            if not isinstance(part, Unreadable):
                named_elsewhere |= {task.name for task in part}
            elif part.task:
                named_elsewhere.add(part.task)
        tasks: list[Task] = []
        for part in parts:
            if isinstance(part, Unreadable):
                tasks += self._instead(part, {task.name for task in tasks}, named_elsewhere)
            else:
                tasks += part
        return tasks

    def _instead(self, part: Unreadable, before: set[str], named_elsewhere: set[str]) -> list[Task]:
        names = [part.task] if part.task else _next(self.tasks, before, named_elsewhere)
        learned = [self.tasks[name] for name in names if name in self.tasks]
        if not learned:
            raise part.error
        return [_without_data(task, part.reason) for task in learned]


def _next(learned: Mapping[str, Task], before: set[str], named_elsewhere: set[str]) -> list[str]:
    """Return the names of the tasks learned after those `before`, up to the first that another entry has."""
    later = [name for name in learned if name not in before]
    return list(takewhile(lambda name: name not in named_elsewhere, later))


def _without_data(task: TaskWithoutData, missing: str) -> TaskWithoutData:
    return TaskWithoutData(task.name, task.classes, digests=task.digests(), missing=missing)


def past_of(run: RunState) -> Past:
    """Return what a run's folder knows of its stream."""
    stream = run.recipe["stream"]
    entries = (
        [_plain(entry) for entry in stream] if isinstance(stream, list) else [as_entry(stream)]
    )
    return Past({task.name: task for task in _tasks_of(run)}, entries)


def past_tasks(folder: str | Path) -> list[TaskWithoutData]:
    """Return the tasks that a run has learned, without their examples, in order.

    In a `TaskStream` they stand before a new task, for a run whose old examples are gone.

    Raises
    ------
    RunError
        The folder is no run, or is damaged.
    """
    return _tasks_of(read(folder))


def _tasks_of(run: RunState) -> list[TaskWithoutData]:
    tasks = []
    for place in run.places.values():
        about = layout.task(place)
        task = TaskWithoutData(
            about["name"],
            about["classes"],
            digests=about["digests"],
            missing="They were not given.",
        )
        tasks.append(task)
    return tasks


def as_entry(section: Any) -> dict[str, Any]:
    """Return a recipe's benchmark as an entry of a list, as `perdure learn` writes it."""
    name, options = named(section, "stream")
    return {"benchmark": name, **options}


def only_task(entry: Mapping[str, Any]) -> str | None:
    """Return the name of the one task of a table; None if it may have several."""
    if "data" not in entry or entry.get("task"):
        return None
    return entry.get("name") or Path(str(entry["data"])).stem


def _plain(entry: Any) -> Any:
    """Leave out which tasks of an entry are not read: that changes nothing in the others."""
    return (
        {key: value for key, value in entry.items() if key != "without"}
        if isinstance(entry, dict)
        else entry
    )


def is_same(learned: TaskWithoutData, task: Task) -> bool:
    """Say whether a task is, example by example, the one that was learned."""
    return learned.classes == task.classes and task.has_digests(learned.digests())


def changed(name: str) -> str:
    """Return what is wrong with examples that are not those learned."""
    return (
        f"The examples of task `{name}` are not those that the run learned: the data has changed, and "
        "what is test now may have been trained on."
    )


def not_measured(missing: Mapping[str, str]) -> str:
    """Return the sentence that says which tasks are not measured, and why; empty if all can be.

    Examples
    --------
    >>> not_measured({"mail": "There is no file `mail.csv`."})
    'Task `mail` cannot be measured now, but is used as it was learned. There is no file `mail.csv`.'
    """
    if not missing:
        return ""
    names = [f"`{name}`" for name in missing]
    shown = ", ".join(names[:NAMES])
    if len(names) > NAMES:
        shown = f"{shown} and {len(names) - NAMES} more"
    if len(names) > 1:
        said = f"Tasks {shown} cannot be measured now, but are used as they were learned."
    else:
        said = f"Task {shown} cannot be measured now, but is used as it was learned."
    reasons = list(dict.fromkeys(missing.values()))
    more = " …" if len(reasons) > REASONS else ""
    return f"{said} {' '.join(reasons[:REASONS])}{more}"
