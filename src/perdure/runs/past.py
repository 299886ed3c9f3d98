"""Placeholders for learned tasks whose examples are gone, as recorded in the run folder.

The run folder contains everything that was learned from a task. The examples are needed
only to measure the task again, and for methods that train on old data. Therefore, a run
can learn more even if a table was moved or deleted.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path

from perdure.data.task import Task, TaskWithoutData
from perdure.errors import DataError, FetchError
from perdure.runs import layout
from perdure.runs.state import RunState, read
from perdure.settings import named

UNREADABLE = (DataError, FetchError, OSError)
"""The exceptions raised when examples that are gone cannot be read.

A wrong setting raises a different exception, which is not caught.
"""
NAMES = 8  # with many old tables, the first few names and reasons are enough
REASONS = 3


@dataclass(frozen=True)
class Unreadable:
    """An entry of a stream whose examples cannot be read.

    Attributes
    ----------
    task
        The name of the only task in the entry; None if it may have several.
    error
        The error that was raised when reading it.
    """

    task: str | None
    error: Exception

    @property
    def reason(self) -> str:
        """A sentence that names the data that cannot be read."""
        if isinstance(self.error, OSError):
            # the text of the error itself begins with a number, such as `[Errno 2]`
            return f"`{self.error.filename}` cannot be read: {self.error.strerror}."
        return str(self.error)


@dataclass(frozen=True)
class Past:
    """A run's stream as recorded in its folder, without reading any table; empty for a new run.

    Attributes
    ----------
    tasks
        The learned tasks, by name, in the order of learning.
    entries
        The entries of the recipe's stream from which the tasks were read, in the form
        that `_plain` returns.
    """

    tasks: Mapping[str, TaskWithoutData] = field(default_factory=dict)
    entries: Sequence[object] = ()

    def instead_of(self, entry: Mapping[str, object], error: Exception) -> Unreadable:
        """Return a placeholder for an entry that cannot be read; for a new run, raise the error."""
        if not self.tasks:
            raise error
        return Unreadable(only_task(entry), error)

    def compared(self, entry: Mapping[str, object], tasks: Sequence[Task]) -> list[Task]:
        """Return the tasks of an entry, without the data of tasks whose examples have changed.

        This applies to entries of the run's own recipe, whose tables were changed later.
        Tasks of other entries are returned unchanged: different data for a task of the
        same name is a mistake, which is reported when the run is restored.
        """
        if _plain(entry) not in self.entries:
            return list(tasks)
        return [self._as_learned(task) for task in tasks]

    def _as_learned(self, task: Task) -> Task:
        learned = self.tasks.get(task.name)
        if learned is None or is_same(learned, task):
            return task
        return _without_data(learned, changed(task.name))

    def completed(self, tasks_by_entry: Sequence[Sequence[Task] | Unreadable]) -> list[Task]:
        """Return all tasks of a stream, with learned tasks in place of entries that cannot be read.

        An unreadable entry with several tasks is replaced by the tasks that were learned
        next, up to the first one that belongs to another entry.

        Raises
        ------
        DataError, FetchError, OSError
            An entry cannot be read, and the run has learned none of its tasks.
        """
        # First, the names that some entry has: an unreadable entry cannot have these.
        named_elsewhere = set[str]()
        for entry_tasks in tasks_by_entry:
            if isinstance(entry_tasks, Unreadable):
                if entry_tasks.task:
                    named_elsewhere.add(entry_tasks.task)
            else:
                named_elsewhere |= {task.name for task in entry_tasks}
        # Then the tasks, in the order of the stream, which is the order of learning.
        tasks: list[Task] = []
        for entry_tasks in tasks_by_entry:
            if isinstance(entry_tasks, Unreadable):
                before = {task.name for task in tasks}
                tasks += self._instead(entry_tasks, before, named_elsewhere)
            else:
                tasks += entry_tasks
        return tasks

    def _instead(
        self, entry: Unreadable, before: set[str], named_elsewhere: set[str]
    ) -> list[Task]:
        """Return the learned tasks that replace an unreadable entry."""
        names = _next(self.tasks, before, named_elsewhere)
        if entry.task:
            names = [entry.task]
        tasks: list[Task] = []
        for name in names:
            if name in self.tasks:
                learned = self.tasks[name]
                tasks.append(_without_data(learned, entry.reason))
        if not tasks:  # nothing can replace the entry: its data is needed
            raise entry.error
        return tasks


def _next(learned: Mapping[str, Task], before: set[str], named_elsewhere: set[str]) -> list[str]:
    """Return the tasks learned after those in `before`, up to the first one of another entry."""
    later = [name for name in learned if name not in before]
    return list(takewhile(lambda name: name not in named_elsewhere, later))


def _without_data(task: TaskWithoutData, missing: str) -> TaskWithoutData:
    return TaskWithoutData(task.name, task.classes, digests=task.digests(), missing=missing)


def past_of(run: RunState) -> Past:
    """Return a run's stream as recorded in its folder, without reading any table."""
    stream = run.recipe["stream"]
    if not isinstance(stream, list):  # a benchmark
        stream = [as_entry(stream)]
    tasks = {task.name: task for task in _tasks_of(run)}
    entries = [_plain(entry) for entry in stream]
    return Past(tasks, entries)


def past_tasks(folder: str | Path) -> list[TaskWithoutData]:
    """Return the tasks that a run has learned, in order, without their examples.

    Put them before a new task in a `TaskStream`, to continue a run whose old examples are gone.

    Raises
    ------
    RunError
        The folder is not a run, or is damaged.
    """
    return _tasks_of(read(folder))


def _tasks_of(run: RunState) -> list[TaskWithoutData]:
    tasks = []
    for folder in run.places.values():
        about = layout.task(folder)
        task = TaskWithoutData(
            about["name"],
            about["classes"],
            digests=about["digests"],
            missing="They were not given.",  # the reason that `not_measured` shows
        )
        tasks.append(task)
    return tasks


def as_entry(section: object) -> dict[str, object]:
    """Return a recipe's benchmark as a list entry, in the form used by `perdure learn`."""
    name, options = named(section, "stream")
    return {"benchmark": name, **options}


def only_task(entry: Mapping[str, object]) -> str | None:
    """Return the name of the only task that an entry reads; None if it may read several."""
    if "data" not in entry or entry.get("task"):  # `task`: a column names each row's task
        return None
    # the name that `read_tasks` uses, by default that of the file
    name = entry.get("name")
    return str(name) if name else Path(str(entry["data"])).stem


def _plain(entry: object) -> object:
    """Return an entry without its `without` list, which does not affect the remaining tasks."""
    if not isinstance(entry, dict):
        return entry
    return {key: value for key, value in entry.items() if key != "without"}


def is_same(learned: TaskWithoutData, task: Task) -> bool:
    """Return True if a task has the same classes and examples as when it was learned."""
    return learned.classes == task.classes and task.has_digests(learned.digests())


def changed(name: str) -> str:
    """Return a message saying that a task's examples are not those that the run has learned."""
    return (
        f"The examples of task `{name}` are not those that the run learned: the data has changed, "
        "and current test examples may have been trained on."
    )


def not_measured(missing: Mapping[str, str]) -> str:
    """Return a message about the tasks that cannot be measured, and why; empty if all can be.

    Examples
    --------
    >>> not_measured({"mail": "No file."})
    'Task `mail` cannot be measured now, but is used as it was learned. No file.'
    """
    if not missing:
        return ""
    names = [f"`{name}`" for name in missing]
    shown = ", ".join(names[:NAMES])
    others = len(names) - NAMES
    if others > 0:
        shown = f"{shown} and {others} more"
    if len(names) > 1:
        said = f"Tasks {shown} cannot be measured now, but are used as they were learned."
    else:
        said = f"Task {shown} cannot be measured now, but is used as it was learned."
    reasons = list(dict.fromkeys(missing.values()))  # tasks of one table have the same reason
    first_reasons = " ".join(reasons[:REASONS])
    more = " …" if len(reasons) > REASONS else ""
    return f"{said} {first_reasons}{more}"
