"""Examples kept for replay: how they are chosen, and how a method's state stores them."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from datasets import Dataset, Image
from jaxtyping import Float
from torch import Tensor

from perdure.data import images
from perdure.data.task import Rows, Task, TaskRows
from perdure.errors import RunError

Strategy = Literal["balanced", "reservoir", "herding"]
COLUMNS = ("text", "text_pair", "messages", "target")
"""The columns of texts that are kept, beside the label."""


@dataclass
class Exemplars:
    """Kept examples by task: each is bytes (a text in UTF-8, or an encoded image) and a label.

    An example with more than a text, such as a pair of texts, a conversation, or an answer in
    words, is a JSON list of what its task's `columns` hold. The label of an answer in words is -1.

    Examples
    --------
    >>> rows = Dataset.from_dict({"text": ["good", "bad", "fine"], "label": [1, 0, 1]})
    >>> task = Task("reviews", ("no", "yes"), train=rows, validation=rows, test=rows)
    >>> kept = Exemplars()
    >>> kept.add(task, [0, 1])
    >>> again = Exemplars.of(kept.state())
    >>> again.rows({"reviews": task.classes})[0].data["text"][:], len(again), again.size
    (['good', 'bad'], 2, 7)
    """

    kind: str = "text"
    inputs: dict[str, list[bytes]] = field(default_factory=dict)
    labels: dict[str, list[int]] = field(default_factory=dict)
    seen: dict[str, int] = field(default_factory=dict)
    """The number of training examples that each task had."""
    columns: dict[str, list[str]] = field(default_factory=dict)
    """The columns of the tasks whose examples have more than a text, by task."""

    def __len__(self) -> int:
        return sum(map(len, self.labels.values()))

    @property
    def size(self) -> int:
        """The size of all inputs, in bytes."""
        return sum(map(len, self._all_inputs()))

    @property
    def counts(self) -> dict[str, int]:
        """The number of examples that are kept of each task."""
        return {task: len(labels) for task, labels in self.labels.items()}

    def add(self, task: Task, chosen: Sequence[int]) -> None:
        """Keep the training examples of a task whose row numbers are `chosen`."""
        data = task.train.select(list(chosen))
        self.kind = task.kind
        if task.kind == "text":
            columns = [name for name in COLUMNS if name in data.column_names]
            inputs = [text.encode() for text in _texts(data, columns)]
            # A task that is learned again may have other columns than before.
            self.columns.pop(task.name, None)
            if columns != ["text"]:
                self.columns[task.name] = columns
        else:
            # The encoded file is smaller than its pixels, and decodes to the same image.
            encoded = images.undecoded(data)
            inputs = [images.content(image) for image in encoded]
        labels = data["label"][:] if task.classes else [-1] * len(data)
        self.inputs[task.name] = inputs
        self.labels[task.name] = list(map(int, labels))
        self.seen[task.name] = len(task.train)

    def thin(self, counts: Mapping[str, int], random: np.random.Generator) -> None:
        """Keep at most `counts[task]` of a task's examples, drawn at random."""
        for task, count in counts.items():
            inputs = self.inputs[task]
            labels = self.labels[task]
            order = random.permutation(len(labels))
            # Sorted, so that the examples stay in the order in which the task has them.
            chosen = sorted(order[:count].tolist())
            self.inputs[task] = [inputs[i] for i in chosen]
            self.labels[task] = [labels[i] for i in chosen]

    def of_tasks(self, tasks: Sequence[str]) -> "Exemplars":
        """Return the examples of these tasks alone: the others have been forgotten."""
        exemplars = Exemplars(self.kind)
        for name in self.labels:
            if name in tasks:
                exemplars.inputs[name] = self.inputs[name]
                exemplars.labels[name] = self.labels[name]
                exemplars.seen[name] = self.seen[name]
                if name in self.columns:
                    exemplars.columns[name] = self.columns[name]
        return exemplars

    def rows(self, tasks: Mapping[str, tuple[str, ...]]) -> Rows:
        """Return the examples of these tasks, as a stream has them.

        Parameters
        ----------
        tasks
            The class names of each task; empty if the answer is free text.

        Raises
        ------
        RunError
            A label is not an index into its task's classes, or an answer in words is missing.
        """
        rows: Rows = []
        for task, classes in tasks.items():
            labels = self.labels.get(task)
            if not labels:
                continue
            if classes and (min(labels) < 0 or max(labels) >= len(classes)):
                raise RunError(
                    f"An example of `{task}` that the run keeps is of no class that the task has."
                )
            data = self._dataset(task)
            if classes:
                data = data.add_column("label", labels)  # pyright: ignore[reportCallIssue]
            elif "target" not in data.column_names:
                raise RunError(f"The examples of `{task}` that the run keeps have no answers.")
            rows.append(TaskRows(task, data, classes))
        return rows

    def _dataset(self, task: str) -> Dataset:
        """Return the kept examples of a task without their labels."""
        inputs = self.inputs[task]
        if self.kind == "text":
            # They may come from a damaged file: bytes that are not UTF-8 are replaced.
            texts = [encoded.decode(errors="replace") for encoded in inputs]
            return Dataset.from_dict(_read(texts, self.columns.get(task, ["text"])))
        encoded = [{"bytes": content, "path": None} for content in inputs]
        return Dataset.from_dict({"image": encoded}).cast_column("image", Image())

    def _all_inputs(self) -> list[bytes]:
        joined: list[bytes] = []
        for inputs in self.inputs.values():
            joined += inputs
        return joined

    # -- as a method's state

    def state(self) -> dict[str, Any]:
        """Return the examples as a method's state holds them: tensors and JSON values."""
        inputs = self._all_inputs()
        lengths = [len(value) for value in inputs]
        labels: list[int] = []
        for task_labels in self.labels.values():
            labels += task_labels

        # One tensor for all inputs: a tensor of its own for each text costs more than most texts.
        content = np.frombuffer(b"".join(inputs), dtype=np.uint8)
        kept: dict[str, object] = {
            "kind": self.kind,
            "tasks": {task: [count, self.seen[task]] for task, count in self.counts.items()},
        }
        # Left out where there are only texts: the states of older versions have no such key.
        if self.columns:
            kept["columns"] = self.columns
        return {
            # Copied, because the array of a bytes object is read-only, of which torch warns.
            "examples": torch.from_numpy(content.copy()),
            "lengths": torch.tensor(lengths, dtype=torch.int64),
            "labels": torch.tensor(labels, dtype=torch.int64),
            "kept": kept,
        }

    @classmethod
    def of(cls, state: Mapping[str, Any]) -> "Exemplars":
        """Read the examples from a method's state; none if the state has no examples.

        Raises
        ------
        RunError
            The lengths, labels and counts are inconsistent.
        """
        if "kept" not in state:
            return cls()
        # The state comes from a run's folder, which may be damaged or made by somebody else.
        try:
            return cls._unpacked(state)
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            raise RunError(f"The examples that the run keeps are damaged ({error}).") from error

    @classmethod
    def _unpacked(cls, state: Mapping[str, Any]) -> "Exemplars":
        content: bytes = state["examples"].numpy().tobytes()
        lengths: list[int] = state["lengths"].tolist()
        labels: Tensor = state["labels"]
        kept = state["kept"]
        tasks: dict[str, list[int]] = kept["tasks"]
        exemplars = cls(kept["kind"])

        # Slices never fail: without this check a wrong length would silently cut other examples.
        counts = [count for count, _ in tasks.values()]
        total = sum(counts)
        is_negative = min([0, *lengths, *counts]) < 0
        fits = sum(lengths) == len(content) and len(lengths) == total
        if is_negative or not fits:
            raise ValueError(f"{total} examples, {len(lengths)} lengths, {len(content)} bytes")

        # The examples lie one after the other, task by task: `number` and `start` walk over them.
        number = 0
        start = 0
        for task, (count, seen) in tasks.items():
            inputs = []
            task_labels = []
            for _ in range(count):
                stop = start + lengths[number]
                inputs.append(content[start:stop])
                task_labels.append(int(labels[number]))
                start = stop
                number += 1
            exemplars.inputs[task] = inputs
            exemplars.labels[task] = task_labels
            exemplars.seen[task] = int(seen)
        # Older versions knew no other columns than those of pairs, and listed the tasks with these.
        columns = dict.fromkeys(kept.get("pairs", []), ["text", "text_pair"])
        for task, names in (columns | kept.get("columns", {})).items():
            if not names or not set(names) <= set(COLUMNS):
                raise ValueError(f"the columns {names}")
            if task in tasks:
                exemplars.columns[task] = list(names)
        return exemplars


def _texts(data: Dataset, columns: Sequence[str]) -> list[str]:
    """Return one text for each example: a JSON list if there are several columns, or turns."""
    if columns == ["text"]:
        return data["text"][:]
    values = zip(*(data[name] for name in columns), strict=True)
    return [json.dumps(example, ensure_ascii=False) for example in values]


def _read(texts: Sequence[str], columns: Sequence[str]) -> dict[str, list[object]]:
    """Return the columns that a task has, from the texts that `_texts` returned.

    Raises
    ------
    RunError
        A text should hold several values, but does not.
    """
    if columns == ["text"]:
        return {"text": list(texts)}
    examples: list[list[object]] = []
    try:
        for text in texts:
            values = json.loads(text)
            read = [_checked(name, value) for name, value in zip(columns, values, strict=True)]
            examples.append(read)
    except (LookupError, ValueError, TypeError, RecursionError) as error:
        raise RunError(f"An example that the run keeps is damaged ({error}).") from error
    return dict(zip(columns, map(list, zip(*examples, strict=True)), strict=True))


def _checked(column: str, value: object) -> object:
    """Return a value of a column: the turns of a conversation, or a text."""
    if column != "messages":
        return str(value)
    if not isinstance(value, list):
        raise TypeError(f"a conversation that is a {type(value).__name__}")
    return [{"role": str(turn["role"]), "content": str(turn["content"])} for turn in value]


# -- which examples are kept


def balanced(labels: Sequence[int], per_class: int, random: np.random.Generator) -> list[int]:
    """Choose at most `per_class` examples of each class, drawn at random."""
    counts = dict.fromkeys(labels, 0)
    chosen = []
    for i in random.permutation(len(labels)).tolist():
        label = labels[i]
        if counts[label] < per_class:
            counts[label] += 1
            chosen.append(i)
    return sorted(chosen)


def herded(
    features: Float[Tensor, "examples d"], labels: Sequence[int], per_class: int
) -> list[int]:
    """Choose at most `per_class` examples of each class, with a mean close to the class's.

    They are chosen one at a time, so that the mean of the examples chosen so far is as close as
    possible to the mean of the class. Features are first scaled to length one.

    References
    ----------
    Welling, Herding dynamical weights to learn, ICML 2009; Rebuffi et al., iCaRL, arXiv 1611.07725.
    """
    # In double precision: the sum grows, and rounding should not decide between near neighbours.
    directions = torch.nn.functional.normalize(features.double(), dim=1)
    chosen = []
    for class_number in sorted(set(labels)):
        left = [i for i, label in enumerate(labels) if label == class_number]
        class_mean = directions[left].mean(0)
        # The sum of the chosen features.
        total = torch.zeros(directions.shape[1], dtype=torch.double)
        for count in range(1, min(per_class, len(left)) + 1):
            # The mean that the chosen examples would have with each of those that are left.
            means = (total + directions[left]) / count
            distances = (means - class_mean).norm(dim=1)
            nearest = left.pop(int(distances.argmin().item()))
            total = total + directions[nearest]
            chosen.append(nearest)
    return sorted(chosen)


def shares(
    capacity: int, seen: Mapping[str, int], kept: Mapping[str, int], random: np.random.Generator
) -> dict[str, int]:
    """Draw the number of examples to keep of each task.

    All examples seen are equally likely to be kept. The last task is new. An old task can only give
    examples that are still kept; if these are too few, the new task gives more.

    Examples
    --------
    >>> random = np.random.default_rng(0)
    >>> shares(10, {"old": 100, "new": 100}, {"old": 8, "new": 100}, random)
    {'old': 5, 'new': 5}
    """
    *old, new = seen
    total = sum(seen.values())
    size = min(capacity, total)
    kept_of_old = [kept[task] for task in old]
    # Rounded up as often as the fraction says: always rounding down would favour the new task.
    share_of_old = 1 - seen[new] / total
    size_of_old = int(size * share_of_old + random.random())
    count_of_old = min(size_of_old, sum(kept_of_old))
    counts: list[int] = []
    if old:
        # Each count as if `count_of_old` examples were drawn from one urn that holds them all.
        counts = random.multivariate_hypergeometric(kept_of_old, count_of_old).tolist()
    counts.append(min(size - count_of_old, kept[new]))
    return dict(zip(seen, counts, strict=True))
