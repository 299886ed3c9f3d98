"""What is learned: a `Task` has examples in three splits, a `TaskStream` is tasks in order."""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal, get_args

import numpy as np
from datasets import Dataset

from perdure.data import images
from perdure.errors import DataError, InputError, UnknownName
from perdure.storage.files import TASK_NAME

Scenario = Literal["task", "domain", "class"]
Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)
Rows = list[tuple[str, Dataset]]
"""Examples of one or several tasks: the task's name, and rows with labels of its own classes."""


@dataclass(frozen=True)
class Task:
    """One task: a name, its classes, and its examples.

    Each split has a column `text` (strings) or `image` (PIL images), and a column `label` with indices
    into `classes`. With a column `text_pair` the two texts of a row are read as a pair. A column `row` says
    where an example stands in its table, for messages.

    Raises
    ------
    DataError
        A split is empty or lacks a column, a label is out of range, or there are fewer than two classes.

    Examples
    --------
    >>> rows = Dataset.from_dict({"text": ["good", "bad"], "label": [1, 0]})
    >>> Task("reviews", ("no", "yes"), train=rows, validation=rows, test=rows).kind
    'text'
    """

    name: str
    classes: tuple[str, ...]
    train: Dataset
    validation: Dataset
    test: Dataset

    def __post_init__(self):
        if not isinstance(self.name, str) or not TASK_NAME.fullmatch(self.name):
            raise DataError(
                f"`{self.name}` cannot name a task. Use letters, digits, `-` and `_`, starting with a letter or digit. "
                "If it is the name of a file, give the task a `name` of its own (`--task`)."
            )
        if len(set(self.classes)) < 2 or len(set(self.classes)) < len(self.classes):
            raise DataError(
                f"Task `{self.name}` needs at least two different classes, got {list(self.classes)}. "
                "Check that the label column is the right one."
            )
        for split in SPLITS:
            self._check(split)

    def _check(self, split: Split) -> None:
        data: Dataset = getattr(self, split)
        where = f"Task `{self.name}`, split `{split}`,"
        if len(data) == 0:
            raise DataError(
                f"{where} is empty. Give it examples, or leave the split out to have one made."
            )
        missing = [name for name in (self.kind, "label") if name not in data.column_names]
        if missing:
            raise DataError(
                f"{where} has no column `{missing[0]}`. Its columns: {data.column_names}."
            )
        labels = np.asarray(data["label"][:])
        if not np.issubdtype(labels.dtype, np.integer):
            raise DataError(
                f"{where} needs whole numbers as labels, indices into the classes; got `{labels[0]!r}`."
            )
        if labels.min() < 0 or labels.max() >= len(self.classes):
            bad = int(labels[(labels < 0) | (labels >= len(self.classes))][0])
            raise DataError(
                f"{where} has label {bad}, but there are {len(self.classes)} classes (0 to {len(self.classes) - 1})."
            )

    @property
    def missing(self) -> str:
        """Why the examples are not here; empty where they are."""
        return ""

    @property
    def kind(self) -> Literal["text", "image"]:
        """The column that holds the input: `text` or `image`."""
        return "image" if "image" in self.train.column_names else "text"

    def rows(self, split: Split) -> "Rows":
        """The examples of a split, with the task's name; those of several tasks can be put together with `+`."""
        return [(self.name, getattr(self, split))]

    def groups(self, split: Split) -> list[int]:
        """Return the group of each example that the task posterior tells apart inside the task: its class."""
        return getattr(self, split)["label"][:]

    def digests(self) -> dict[str, str]:
        """The SHA-256 of each split: of its inputs (images as they are encoded) and labels, in order."""
        return dict(self._digests)

    def has_digests(self, digests: Mapping[str, str]) -> bool:
        """Whether a run that keeps these digests has learned these examples.

        Version 0.1.0 took the path of an image in a file for its content; runs of it still match.
        """
        if digests == self.digests():
            return True
        if self.kind == "text":
            return False
        by_path = {
            split: _digest(getattr(self, split), "image", _content_or_path) for split in SPLITS
        }
        return digests == by_path

    @cached_property
    def unreadable(self) -> tuple[str, ...]:
        """The reason why an image cannot be read, for each such image of all splits."""
        if self.kind == "text":
            return ()
        reasons = []
        for split in SPLITS:
            reasons += images.unreadable(
                getattr(self, split), f"Task `{self.name}`, split `{split}`"
            )
        return tuple(reasons)

    @cached_property
    def _digests(self) -> dict[str, str]:
        """A run asks for those of all tasks so far at each of them."""
        return {split: _digest(getattr(self, split), self.kind) for split in SPLITS}

    def limited(self, sizes: dict[str, int | None], seed: int) -> "Task":
        """The task with at most `sizes[split]` examples a split, drawn with `seed`."""
        fewer = {}
        for split, size in sizes.items():
            data: Dataset = getattr(self, split)
            if size is not None and size < len(data):
                chosen = np.random.default_rng(seed).permutation(len(data))[:size]
                fewer[split] = data.select(np.sort(chosen))
        return replace(self, **fewer)


def check_images(tasks: Iterable[Task]) -> None:
    """Raise `DataError` if images of these tasks cannot be read, with the first reasons and their number."""
    reasons = [reason for task in tasks for reason in task.unreadable]
    if not reasons:
        return
    sentences = reasons[: images.LISTED]
    if len(reasons) > len(sentences):
        sentences.append(f"And {len(reasons) - len(sentences)} more.")
    count = "One image" if len(reasons) == 1 else f"{len(reasons)} images"
    raise DataError(
        f"{count} cannot be read; replace or remove what is named. {' '.join(sentences)}"
    )


class TaskWithoutData(Task):
    """A task that a run has learned, and whose examples are not here.

    It takes the task's place in a stream, so that the run can learn more: it has the name, the classes
    and the digests that the run's folder keeps. Asking it for examples is an error.

    Parameters
    ----------
    name, classes
        Those of the task.
    digests
        The SHA-256 of each split, as it was learned.
    missing
        Why the examples are not here: a sentence.

    Examples
    --------
    >>> task = TaskWithoutData("reviews", ("no", "yes"), digests={}, missing="There is no file `reviews.csv`.")
    >>> task.rows("train")
    Traceback (most recent call last):
    perdure.errors.DataError: The examples of task `reviews` are needed, but: There is no file `reviews.csv`.
    """

    def __init__(self, name: str, classes: Sequence[str], *, digests: dict[str, str], missing: str):
        # not by the constructor of `Task`, which asks for examples; the class is frozen, hence `vars`
        vars(self).update(name=name, classes=tuple(classes), _digests=digests, _missing=missing)

    @property
    def missing(self) -> str:
        return vars(self)["_missing"]

    def __getattr__(self, name: str) -> Any:
        """Refuse the splits; no other attribute is missing."""
        if name not in SPLITS:
            raise AttributeError(name)
        raise DataError(f"The examples of task `{self.name}` are needed, but: {self.missing}")

    def __repr__(self) -> str:
        return f"TaskWithoutData({self.name!r}, missing={self.missing!r})"

    # the comparison that `Task` has would ask for examples

    def __eq__(self, other: object) -> bool:
        return self is other

    def __hash__(self) -> int:
        return id(self)

    def has_digests(self, digests: Mapping[str, str]) -> bool:
        return digests == self.digests()

    def limited(self, sizes: dict[str, int | None], seed: int) -> "TaskWithoutData":
        return self


def _digest(
    data: Dataset, kind: str, content: Callable[[Mapping[str, Any]], bytes] = images.content
) -> str:
    digest = hashlib.sha256()
    if kind == "image":
        inputs = (content(value) for value in images.undecoded(data))
    else:
        inputs = (text.encode() for text in data["text"])
    for value in inputs:
        digest.update(value)
        digest.update(b"\0")
    if "text_pair" in data.column_names:
        for text in data["text_pair"]:
            digest.update(text.encode())
            digest.update(b"\0")
    digest.update(np.asarray(data["label"][:], dtype=np.int64).tobytes())
    return digest.hexdigest()


def _content_or_path(value: Mapping[str, Any]) -> bytes:
    return value["bytes"] or str(value["path"]).encode()


@dataclass(frozen=True)
class TaskStream:
    """Tasks in the order in which they are learned.

    `scenario` says what is known of an input at test time (van de Ven & Tolias 2022): `task` its task,
    `domain` nothing, and all tasks have the same classes, `class` nothing, and the class is searched
    among those of all tasks. Classes of the same name in different tasks are the same class.

    Examples
    --------
    >>> rows = Dataset.from_dict({"text": ["good", "bad"], "label": [1, 0]})
    >>> task = Task("reviews", ("no", "yes"), train=rows, validation=rows, test=rows)
    >>> stream = TaskStream("mine", (task, replace(task, name="posts", classes=("yes", "maybe"))))
    >>> stream.classes, stream.class_index("posts")
    (('no', 'yes', 'maybe'), [1, 2])
    """

    name: str
    tasks: tuple[Task, ...]
    scenario: Scenario = "class"

    def __post_init__(self):
        names = self.names
        twice = sorted({name for name in names if names.count(name) > 1})
        if not names or twice:
            raise InputError(
                f"Stream `{self.name}` "
                + (f"has two tasks named `{twice[0]}`; rename one." if twice else "has no task.")
            )
        if self.scenario not in get_args(Scenario):
            raise InputError(
                f"`scenario` must be one of {list(get_args(Scenario))}, got `{self.scenario}`."
            )
        if self.scenario == "domain" and len({frozenset(task.classes) for task in self.tasks}) > 1:
            raise InputError(
                "With `scenario: domain` all tasks must have the same classes. Use `class` or `task`."
            )
        if len({task.kind for task in self.tasks if not task.missing}) > 1:
            raise InputError(
                f"Stream `{self.name}` mixes text and images; one backbone reads only one of them."
            )

    def __len__(self) -> int:
        return len(self.tasks)

    def __iter__(self) -> Iterator[Task]:
        return iter(self.tasks)

    def __getitem__(self, index: int) -> Task:
        return self.tasks[index]

    @property
    def names(self) -> list[str]:
        return [task.name for task in self.tasks]

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of all classes, each once, in the order in which they come."""
        return tuple(dict.fromkeys(name for task in self.tasks for name in task.classes))

    @property
    def missing(self) -> dict[str, str]:
        """The tasks whose examples are not here, each with the reason."""
        return {task.name: task.missing for task in self.tasks if task.missing}

    def task(self, name: str) -> Task:
        """The task called `name`."""
        if name not in self.names:
            raise UnknownName("task", name, self.names)
        return self.tasks[self.names.index(name)]

    def class_index(self, name: str) -> list[int]:
        """For each class of a task, its place in `classes`."""
        return [self.classes.index(c) for c in self.task(name).classes]

    def until(self, step: int) -> "TaskStream":
        """The first `step` tasks."""
        return replace(self, tasks=self.tasks[:step])

    def limited(
        self,
        *,
        train: int | None = None,
        validation: int | None = None,
        test: int | None = None,
        seed: int = 0,
    ):
        """The stream with at most so many examples in each split of each task, drawn with `seed`."""
        sizes = {"train": train, "validation": validation, "test": test}
        return replace(self, tasks=tuple(task.limited(sizes, seed) for task in self.tasks))

    def ordered(self, names: Sequence[str]) -> "TaskStream":
        """The stream with the tasks `names`, in that order."""
        return replace(self, tasks=tuple(self.task(name) for name in names))
