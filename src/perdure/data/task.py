"""Tasks to learn. A `Task` has examples in three splits; a `TaskStream` is a sequence of tasks."""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal, NamedTuple, get_args

import numpy as np
from datasets import Dataset

from perdure.data import images
from perdure.data.images import EncodedImage
from perdure.errors import DataError, InputError, UnknownName
from perdure.storage.files import TASK_NAME

Scenario = Literal["task", "domain", "class"]
Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)


class TaskRows(NamedTuple):
    """Examples of one task.

    Attributes
    ----------
    task
        The name of the task.
    data
        The rows, with indices into the classes of the task as labels, or with free-text answers.
    classes
        The class names, which are also the answers of a language model.
    """

    task: str
    data: Dataset
    classes: tuple[str, ...] = ()


Rows = list[TaskRows]
"""Examples of one or more tasks."""


@dataclass(frozen=True)
class Task:
    """A task with a name, classes, and examples.

    Each split has a column `text` (strings) or `image` (PIL images), and a column `label`
    with indices into `classes`. If there is a column `text_pair`, the two texts of a row
    are read as a pair. An optional column `row` contains the row number of each example
    in its table, for error messages.

    A task without classes has free-text answers. Instead of `label`, its rows have
    `target`, the answer that is used for training, and optionally `answers`, a list of
    all right answers. The prompt is in `text`, or in `messages` as the turns of a
    conversation before the answer.

    Parameters
    ----------
    classes
        The class names; empty if the answers are free text.
    score
        The metric for the answers: the name of a file in `perdure/evaluation/scores`.
    in_order
        If True, training reads the examples in the order of `train`, without shuffling them.

    Raises
    ------
    DataError
        A split is empty or lacks a column, a label is out of range, an answer is empty,
        or there is only one class.

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
    score: str = "accuracy"
    in_order: bool = False

    def __post_init__(self):
        # The name is also used for a folder in the run folder.
        if not isinstance(self.name, str) or not TASK_NAME.fullmatch(self.name):
            raise DataError(
                f"`{self.name}` cannot be the name of a task. Use letters, digits, `-` and `_`, "
                "starting with a letter or digit. If it is the name of a file, give the task "
                "another `name` (`--task`)."
            )
        different = len(set(self.classes))
        if self.classes and (different < 2 or different < len(self.classes)):
            raise DataError(
                f"Task `{self.name}` needs at least two different classes, "
                f"got {list(self.classes)}. Check that the label column is the right one."
            )
        # Checked now, because a later error would occur in the middle of a run.
        for split in SPLITS:
            self._check(split)

    def _check(self, split: Split) -> None:
        # Only sizes and labels are checked: decoding all images takes long (see `unreadable`).
        data: Dataset = getattr(self, split)
        where = f"Task `{self.name}`, split `{split}`,"
        if len(data) == 0:
            raise DataError(
                f"{where} is empty. Give it examples, or omit the split to have it created."
            )
        is_conversation = self.kind == "text" and "messages" in data.column_names
        prompt = "messages" if is_conversation else self.kind
        for column in (prompt, "label" if self.classes else "target"):
            if column not in data.column_names:
                raise DataError(
                    f"{where} has no column `{column}`. Its columns: {data.column_names}."
                )
        if self.classes:
            self._check_labels(data, where)
        else:
            _check_targets(data, where)

    def _check_labels(self, data: Dataset, where: str) -> None:
        labels = np.asarray(data["label"][:])
        # Floats are not rounded: they are a quantity, or integers of which some are missing.
        if not np.issubdtype(labels.dtype, np.integer):
            raise DataError(
                f"{where} needs integers as labels, indices into the classes; got `{labels[0]!r}`."
            )
        count = len(self.classes)
        out_of_range = labels[(labels < 0) | (labels >= count)]
        if len(out_of_range):
            raise DataError(
                f"{where} has label {out_of_range[0]}, but there are {count} classes "
                f"(0 to {count - 1})."
            )

    @property
    def missing(self) -> str:
        """The reason why the examples are unavailable; empty if they are available."""
        return ""

    @property
    def kind(self) -> Literal["text", "image"]:
        """The kind of input: `text` or `image`."""
        return "image" if "image" in self.train.column_names else "text"

    def rows(self, split: Split) -> "Rows":
        """Return the examples of a split as a list with a single `TaskRows`.

        The lists of several tasks can be joined with `+`.
        """
        return [TaskRows(self.name, getattr(self, split), self.classes)]

    def groups(self, split: Split) -> list[int]:
        """Return the group of each example: its class, or 0 if there are no classes.

        The task posterior models each group of a task separately.
        """
        data: Dataset = getattr(self, split)
        return data["label"][:] if self.classes else [0] * len(data)

    @property
    def group_count(self) -> int:
        """The number of groups that `groups` distinguishes."""
        return max(1, len(self.classes))

    def references(self, split: Split) -> list[list[str]]:
        """Return a list of right answers, with at least one text, for each example."""
        data: Dataset = getattr(self, split)
        if self.classes:
            return [[self.classes[label]] for label in data["label"]]
        if "answers" in data.column_names:
            return data["answers"][:]
        return [[target] for target in data["target"]]

    def sources(self, split: Split) -> list[str]:
        """Return the prompt of each example; in a conversation, the last turn before the answer."""
        data: Dataset = getattr(self, split)
        if "messages" in data.column_names:
            return [turns[-1]["content"] for turns in data["messages"]]
        return data["text"][:]

    def digests(self) -> dict[str, str]:
        """Return the SHA-256 digest of the inputs and the labels or answers in each split."""
        return dict(self._digests)

    def has_digests(self, digests: Mapping[str, str]) -> bool:
        """Return whether a run with the given digests has learned these examples.

        Version 0.1.0 hashed the path of an image file instead of its content; runs of
        that version still match.
        """
        if digests == self.digests():
            return True
        if self.kind == "text":
            return False
        # Tried last, because most runs match by content, and each digest reads an entire split.
        by_path = {}
        for split in SPLITS:
            by_path[split] = _digest(getattr(self, split), "image", _content_or_path)
        return digests == by_path

    @cached_property
    def unreadable(self) -> tuple[str, ...]:
        """Error messages for the images that cannot be read, in all splits."""
        if self.kind == "text":
            return ()
        # Cached, because all images are decoded, and every run on the task checks them.
        reasons = []
        for split in SPLITS:
            where = f"Task `{self.name}`, split `{split}`"
            reasons += images.unreadable(getattr(self, split), where)
        return tuple(reasons)

    @cached_property
    def _digests(self) -> dict[str, str]:
        # Cached, because at each task, a run needs the digests of all tasks so far.
        digests = {}
        for split in SPLITS:
            digests[split] = _digest(getattr(self, split), self.kind)
        return digests

    def limited(self, sizes: dict[str, int | None], seed: int) -> "Task":
        """Return the task with at most `sizes[split]` examples per split, drawn with `seed`."""
        splits = {}
        for split, size in sizes.items():
            data: Dataset = getattr(self, split)
            if size is not None and size < len(data):
                # A separate generator for each split, so that limiting one does not change another.
                order = np.random.default_rng(seed).permutation(len(data))
                chosen = np.sort(order[:size])
                splits[split] = data.select(chosen)
        return replace(self, **splits)


def check_images(tasks: Iterable[Task]) -> None:
    """Check that all images of these tasks can be read.

    Raises
    ------
    DataError
        Some images cannot be read. The message gives their number and the first few reasons.
    """
    reasons: list[str] = []
    for task in tasks:
        reasons += task.unreadable
    if not reasons:
        return
    sentences = reasons[: images.LISTED]
    remaining = len(reasons) - len(sentences)
    if remaining:
        sentences.append(f"And {remaining} more.")
    count = "One image" if len(reasons) == 1 else f"{len(reasons)} images"
    raise DataError(
        f"{count} cannot be read and must be replaced or removed. {' '.join(sentences)}"
    )


class TaskWithoutData(Task):
    """A task that a run has learned, but whose examples are unavailable.

    It replaces the task in a stream, so that the run can continue with new tasks. It has
    the name, classes and digests that are stored in the run folder. Accessing its
    examples is an error.

    Parameters
    ----------
    name, classes
        The name and the classes of the task.
    digests
        The SHA-256 of each split at the time of training.
    missing
        The reason why the examples are unavailable, as a sentence.

    Examples
    --------
    >>> task = TaskWithoutData("reviews", ("no", "yes"), digests={}, missing="It is lost.")
    >>> task.rows("train")
    Traceback (most recent call last):
    perdure.errors.DataError: The examples of task `reviews` are needed, but: It is lost.
    """

    def __init__(self, name: str, classes: Sequence[str], *, digests: dict[str, str], missing: str):
        # The constructor of `Task` is not called, because it checks examples. `vars` is
        # used, because the class is frozen. `_digests` fills the cache of the property of
        # that name.
        vars(self).update(
            name=name,
            classes=tuple(classes),
            _digests=digests,
            _missing=missing,
        )

    @property
    def missing(self) -> str:
        return vars(self)["_missing"]

    def __getattr__(self, name: str) -> object:
        """Raise `DataError` for the splits, the only attributes of a task that are missing."""
        if name not in SPLITS:
            raise AttributeError(name)
        raise DataError(f"The examples of task `{self.name}` are needed, but: {self.missing}")

    def __repr__(self) -> str:
        return f"TaskWithoutData({self.name!r}, missing={self.missing!r})"

    # `Task` is compared field by field, which would require examples.

    def __eq__(self, other: object) -> bool:
        return self is other

    def __hash__(self) -> int:
        return id(self)

    def has_digests(self, digests: Mapping[str, str]) -> bool:
        return digests == self.digests()

    def limited(self, sizes: dict[str, int | None], seed: int) -> "TaskWithoutData":
        return self


def _digest(
    data: Dataset, kind: str, content: Callable[[EncodedImage], bytes] = images.content
) -> str:
    digest = hashlib.sha256()
    # Generators, because all encoded images of a split may not fit into memory.
    if kind == "image":
        inputs = (content(image) for image in images.undecoded(data))
    else:
        inputs = (text.encode() for text in _prompts(data))
    for value in inputs:
        digest.update(value)
        digest.update(b"\0")  # so that `ab`, `c` is not the same as `a`, `bc`
    if "text_pair" in data.column_names:
        for text in data["text_pair"]:
            digest.update(text.encode())
            digest.update(b"\0")
    if "target" in data.column_names:
        for answers in _answers(data):
            digest.update(answers.encode())
            digest.update(b"\0")
        return digest.hexdigest()
    # Always 64 bits: the digest is stored, and must not depend on how a table stores its labels.
    labels = np.asarray(data["label"][:], dtype=np.int64)
    digest.update(labels.tobytes())
    return digest.hexdigest()


def _prompts(data: Dataset) -> Iterable[str]:
    """Return the prompts as strings, with conversations in JSON."""
    if "messages" in data.column_names:
        return (json.dumps(turns, ensure_ascii=False) for turns in data["messages"])
    return data["text"]


def _answers(data: Dataset) -> Iterable[str]:
    """Return the right answers to each example as a single string."""
    if "answers" in data.column_names:
        return (json.dumps(answers, ensure_ascii=False) for answers in data["answers"])
    return data["target"]


def _check_targets(data: Dataset, where: str) -> None:
    """Check that every example has a text answer."""
    for number, target in enumerate(data["target"], start=1):
        if not isinstance(target, str) or not target.strip():
            raise DataError(
                f"{where} has no answer in example {number}: `target` is {target!r}, but must be a "
                "text that is not empty."
            )


def _content_or_path(image: EncodedImage) -> bytes:
    return image["bytes"] or str(image["path"]).encode()


@dataclass(frozen=True)
class TaskStream:
    """A sequence of tasks, in the order in which they are learned.

    `scenario` determines what is known about an input at test time (van de Ven & Tolias
    2022). With `task`, its task is known. With `domain`, its task is unknown, and all
    tasks have the same classes. With `class`, its task is unknown, and its class may
    belong to any task. Classes with the same name in different tasks are the same class.

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
    fading: float | None = None
    """The power κ of a graduated stream, whose tasks have no boundaries; None otherwise."""
    unknown: Dataset | None = None
    """Inputs that belong to no task, for `evaluation.unknown`."""

    def __post_init__(self):
        names = self.names
        if not names:
            raise InputError(f"Stream `{self.name}` has no tasks.")
        repeated = sorted({name for name in names if names.count(name) > 1})
        if repeated:
            raise InputError(
                f"Stream `{self.name}` has two tasks named `{repeated[0]}`; rename one."
            )
        scenarios = list(get_args(Scenario))
        if self.scenario not in scenarios:
            raise InputError(f"`scenario` must be one of {scenarios}, got `{self.scenario}`.")
        # Compared as sets, because tasks may list the same classes in different orders.
        class_sets = {frozenset(task.classes) for task in self.tasks}
        if self.scenario == "domain" and len(class_sets) > 1:
            raise InputError(
                "With `scenario: domain` all tasks must have the same classes. "
                "Use `class` or `task`."
            )
        # The kind of a task without data is unknown.
        kinds = {task.kind for task in self.tasks if not task.missing}
        if len(kinds) > 1:
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
        """The class names of all tasks without duplicates, in order of first appearance."""
        names: list[str] = []
        for task in self.tasks:
            names += task.classes
        return tuple(dict.fromkeys(names))

    @property
    def missing(self) -> dict[str, str]:
        """The names of the tasks whose examples are unavailable, with the reason for each."""
        return {task.name: task.missing for task in self.tasks if task.missing}

    def task(self, name: str) -> Task:
        """Return the task called `name`."""
        if name not in self.names:
            raise UnknownName("task", name, self.names)
        return self.tasks[self.names.index(name)]

    def class_index(self, name: str) -> list[int]:
        """Return the indices of a task's classes in `classes`."""
        index = {class_name: i for i, class_name in enumerate(self.classes)}
        return [index[class_name] for class_name in self.task(name).classes]

    def until(self, step: int) -> "TaskStream":
        """Return a stream of the first `step` tasks."""
        return replace(self, tasks=self.tasks[:step])

    def limited(
        self,
        *,
        train: int | None = None,
        validation: int | None = None,
        test: int | None = None,
        seed: int = 0,
    ):
        """Return the stream with at most the given number of examples per task and split.

        The examples are drawn with `seed`. If the number is None, the split keeps all examples.
        """
        sizes = {"train": train, "validation": validation, "test": test}
        tasks = tuple(task.limited(sizes, seed) for task in self.tasks)
        return replace(self, tasks=tasks)

    def ordered(self, names: Sequence[str]) -> "TaskStream":
        """Return a stream of the tasks called `names`, in that order."""
        tasks = tuple(self.task(name) for name in names)
        return replace(self, tasks=tasks)
