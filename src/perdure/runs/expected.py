"""Placeholders for tasks whose data would have to be downloaded, for dry runs.

The names and sizes of these tasks are taken from the recipe.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from datasets import Dataset

from perdure import registry
from perdure.benchmarks.parts.orders import Orders, task_names
from perdure.data.task import SPLITS, Split, Task
from perdure.errors import NotHere
from perdure.runs.past import only_task
from perdure.settings import named

UNKNOWN = ("one class", "another class")
"""Placeholders for the classes of a task, if they are unknown."""


@dataclass(frozen=True)
class ExpectedTask(Task):
    """A task with placeholders as examples, as many as the recipe asks for.

    Attributes
    ----------
    sizes
        The number of examples in each split; None if the recipe does not state it.
    reason
        A sentence that says which data is missing.
    alone
        False if this task represents an unknown number of tasks.
    """

    sizes: Mapping[Split, int | None] = field(default_factory=dict)
    reason: str = ""
    alone: bool = True

    @property
    def classes_are_known(self) -> bool:
        """True if the names of the classes are known."""
        return self.classes != UNKNOWN


def expected(entry: Mapping[str, object], error: NotHere) -> list[Task]:
    """Return placeholders for the tasks of an entry whose data is not on this machine.

    Parameters
    ----------
    entry
        An entry of a recipe's stream: a benchmark or a data set of the hub.
    error
        The error that was raised when the entry was read.
    """
    left_out = entry.get("without") or []
    assert isinstance(left_out, Sequence)
    if "benchmark" in entry:
        tasks = _of_benchmark(entry, str(error))
    else:
        tasks = [_of_data(entry, str(error))]
    return [task for task in tasks if task.name not in left_out]


def _of_benchmark(entry: Mapping[str, object], reason: str) -> list[Task]:
    name, options = named(entry, "stream", key="benchmark")
    function = registry.find("benchmark", name)
    declared: Orders | None = getattr(function, "orders", None)
    sizes: dict[Split, int | None] = {split: options.get(split) for split in SPLITS}
    if declared is None:
        return [_task(name, UNKNOWN, {}, reason, alone=False)]
    order = options.get("order", registry.options(function)["order"].default)
    tasks: list[Task] = []
    for task in task_names(order, declared.named, declared.tasks):
        tasks.append(_task(task, declared.classes.get(task, ()), sizes, reason))
    return tasks


def _of_data(entry: Mapping[str, object], reason: str) -> Task:
    classes = () if entry.get("answer") else UNKNOWN
    name = only_task(entry)
    if name is None:  # a column says which task a row belongs to
        return _task(Path(str(entry["data"])).stem, classes, {}, reason, alone=False)
    return _task(name, classes, {}, reason)


def _task(
    name: str,
    classes: tuple[str, ...],
    sizes: Mapping[Split, int | None],
    reason: str,
    *,
    alone: bool = True,
) -> ExpectedTask:
    splits: dict[Split, Dataset] = {}
    for split in SPLITS:
        size = sizes.get(split) or 1
        answers = {"label": [0] * size} if classes else {"target": ["an answer"] * size}
        splits[split] = Dataset.from_dict({"text": ["a text"] * size, **answers})
    return ExpectedTask(name, classes, **splits, sizes=sizes, reason=reason, alone=alone)
