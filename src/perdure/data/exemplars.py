"""Examples stored for replay, and functions to choose them and save them in a method's state."""

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

Strategy = Literal["balanced", "reservoir", "herding", "surprise"]
COLUMNS = ("text", "text_pair", "messages", "target")
"""The text columns that are stored in addition to the label."""


@dataclass
class Exemplars:
    """The stored examples of each task: inputs as bytes (UTF-8 text or encoded images), and labels.

    If the examples of a task consist of more than a single text, such as text pairs,
    conversations, or prompts with free-text answers, each input is a JSON list with a
    value for each of the task's `columns`. The label of an example with a free-text
    answer is -1.

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
    """The text columns of each task, except for tasks whose only text column is `text`."""

    def __len__(self) -> int:
        return sum(map(len, self.labels.values()))

    @property
    def size(self) -> int:
        """The total size of all inputs, in bytes."""
        return sum(map(len, self._all_inputs()))

    @property
    def counts(self) -> dict[str, int]:
        """The number of stored examples of each task."""
        return {task: len(labels) for task, labels in self.labels.items()}

    def add(self, task: Task, chosen: Sequence[int]) -> None:
        """Store the training examples of a task at the indices `chosen`."""
        data = task.train.select(list(chosen))
        self.kind = task.kind
        if task.kind == "text":
            columns = [name for name in COLUMNS if name in data.column_names]
            inputs = [text.encode() for text in _texts(data, columns)]
            # If a task is learned again, its columns may have changed.
            self.columns.pop(task.name, None)
            if columns != ["text"]:
                self.columns[task.name] = columns
        else:
            # An encoded file is smaller than its pixels, and decodes to the same image.
            encoded = images.undecoded(data)
            inputs = [images.content(image) for image in encoded]
        labels = data["label"][:] if task.classes else [-1] * len(data)
        self.inputs[task.name] = inputs
        self.labels[task.name] = list(map(int, labels))
        self.seen[task.name] = len(task.train)

    def thin(self, counts: Mapping[str, int], random: np.random.Generator) -> None:
        """Reduce each task in `counts` to at most `counts[task]` examples, drawn at random."""
        for task, count in counts.items():
            inputs = self.inputs[task]
            labels = self.labels[task]
            order = random.permutation(len(labels))
            # Sorted, so that the examples stay in the order of the task.
            chosen = sorted(order[:count].tolist())
            self.inputs[task] = [inputs[i] for i in chosen]
            self.labels[task] = [labels[i] for i in chosen]

    def of_tasks(self, tasks: Sequence[str]) -> "Exemplars":
        """Return the stored examples of the given tasks, leaving out those of forgotten tasks."""
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
        """Return the stored examples of the given tasks as data sets.

        Parameters
        ----------
        tasks
            The class names of each task; empty for tasks with free-text answers.

        Raises
        ------
        RunError
            A label is not an index into its task's classes, or free-text answers are missing.
        """
        rows: Rows = []
        for task, classes in tasks.items():
            labels = self.labels.get(task)
            if not labels:
                continue
            if classes and (min(labels) < 0 or max(labels) >= len(classes)):
                raise RunError(
                    f"A stored example of `{task}` has a label that is not a class of the task."
                )
            data = self._dataset(task)
            if classes:
                data = data.add_column("label", labels)  # pyright: ignore[reportCallIssue]
            elif "target" not in data.column_names:
                raise RunError(f"The stored examples of `{task}` have no answers.")
            rows.append(TaskRows(task, data, classes))
        return rows

    def _dataset(self, task: str) -> Dataset:
        """Return the stored examples of a task without their labels."""
        inputs = self.inputs[task]
        if self.kind == "text":
            # The bytes may come from a damaged file, so invalid UTF-8 is replaced.
            texts = [encoded.decode(errors="replace") for encoded in inputs]
            return Dataset.from_dict(_read(texts, self.columns.get(task, ["text"])))
        encoded = [{"bytes": content, "path": None} for content in inputs]
        return Dataset.from_dict({"image": encoded}).cast_column("image", Image())

    def _all_inputs(self) -> list[bytes]:
        joined: list[bytes] = []
        for inputs in self.inputs.values():
            joined += inputs
        return joined

    # -- saving in a method's state

    def state(self) -> dict[str, Any]:
        """Return the examples as tensors and JSON values, to be stored in a method's state."""
        inputs = self._all_inputs()
        lengths = [len(value) for value in inputs]
        labels: list[int] = []
        for task_labels in self.labels.values():
            labels += task_labels

        # One tensor for all inputs: the overhead of a separate tensor would exceed most texts.
        content = np.frombuffer(b"".join(inputs), dtype=np.uint8)
        kept: dict[str, object] = {
            "kind": self.kind,
            "tasks": {task: [count, self.seen[task]] for task, count in self.counts.items()},
        }
        # Omitted if all examples are single texts, as in the states that older versions wrote.
        if self.columns:
            kept["columns"] = self.columns
        return {
            # Copied, because an array over a bytes object is read-only, and torch warns about that.
            "examples": torch.from_numpy(content.copy()),
            "lengths": torch.tensor(lengths, dtype=torch.int64),
            "labels": torch.tensor(labels, dtype=torch.int64),
            "kept": kept,
        }

    @classmethod
    def of(cls, state: Mapping[str, Any]) -> "Exemplars":
        """Restore the examples from a method's state; the result is empty if the state has none.

        Raises
        ------
        RunError
            The state is damaged; for instance, lengths, labels and counts are inconsistent.
        """
        if "kept" not in state:
            return cls()
        # The state comes from a run folder, which may be damaged or made by somebody else.
        try:
            return cls._unpacked(state)
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            raise RunError(f"The examples stored in the run are damaged ({error}).") from error

    @classmethod
    def _unpacked(cls, state: Mapping[str, Any]) -> "Exemplars":
        content: bytes = state["examples"].numpy().tobytes()
        lengths: list[int] = state["lengths"].tolist()
        labels: Tensor = state["labels"]
        kept = state["kept"]
        tasks: dict[str, list[int]] = kept["tasks"]
        exemplars = cls(kept["kind"])

        # Slicing never fails: without this check, a wrong length would silently shift the examples.
        counts = [count for count, _ in tasks.values()]
        total = sum(counts)
        is_negative = min([0, *lengths, *counts]) < 0
        fits = sum(lengths) == len(content) and len(lengths) == total
        if is_negative or not fits:
            raise ValueError(f"{total} examples, {len(lengths)} lengths, {len(content)} bytes")

        # The examples are concatenated, task by task; `number` and `start` advance through them.
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
        # Older versions supported only single texts and pairs, and listed the tasks with pairs.
        columns = dict.fromkeys(kept.get("pairs", []), ["text", "text_pair"])
        for task, names in (columns | kept.get("columns", {})).items():
            if not names or not set(names) <= set(COLUMNS):
                raise ValueError(f"the columns {names}")
            if task in tasks:
                exemplars.columns[task] = list(names)
        return exemplars


def _texts(data: Dataset, columns: Sequence[str]) -> list[str]:
    """Return each example as one string: the text itself, or a JSON list of its columns."""
    if columns == ["text"]:
        return data["text"][:]
    values = zip(*(data[name] for name in columns), strict=True)
    return [json.dumps(example, ensure_ascii=False) for example in values]


def _read(texts: Sequence[str], columns: Sequence[str]) -> dict[str, list[object]]:
    """Return the columns of a task, decoded from the strings that `_texts` returned.

    Raises
    ------
    RunError
        A string is not a JSON list with a valid value for each column.
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
        raise RunError(f"An example stored in the run is damaged ({error}).") from error
    return dict(zip(columns, map(list, zip(*examples, strict=True)), strict=True))


def _checked(column: str, value: object) -> object:
    """Check a decoded value, and return it in the type of its column: turns, or a string."""
    if column != "messages":
        return str(value)
    if not isinstance(value, list):
        raise TypeError(f"a conversation that is a {type(value).__name__}")
    return [{"role": str(turn["role"]), "content": str(turn["content"])} for turn in value]


# -- choosing examples


def balanced(labels: Sequence[int], per_class: int, random: np.random.Generator) -> list[int]:
    """Choose at most `per_class` examples of each class at random, and return their indices."""
    counts = dict.fromkeys(labels, 0)
    chosen = []
    for i in random.permutation(len(labels)).tolist():
        label = labels[i]
        if counts[label] < per_class:
            counts[label] += 1
            chosen.append(i)
    return sorted(chosen)


def drawn(size: int, count: int, random: np.random.Generator) -> list[int]:
    """Choose `count` of `size` examples at random, and return their indices."""
    return sorted(random.permutation(size)[:count].tolist())


def herded(
    features: Float[Tensor, "examples d"], labels: Sequence[int], per_class: int
) -> list[int]:
    """Choose at most `per_class` examples of each class so that their mean is near the class mean.

    Examples are chosen one at a time. Each choice brings the mean of the examples chosen
    so far as close as possible to the class mean. Features are first scaled to unit
    length.

    References
    ----------
    Welling, Herding dynamical weights to learn, ICML 2009; Rebuffi et al., iCaRL, arXiv 1611.07725.
    """
    # In double precision, because the sum grows and rounding should not decide between near ties.
    directions = torch.nn.functional.normalize(features.double(), dim=1)
    chosen = []
    for class_number in sorted(set(labels)):
        left = [i for i, label in enumerate(labels) if label == class_number]
        class_mean = directions[left].mean(0)
        # The sum of the chosen features.
        total = torch.zeros(directions.shape[1], dtype=torch.double)
        for count in range(1, min(per_class, len(left)) + 1):
            # The mean of the chosen examples if each of the remaining ones were added.
            means = (total + directions[left]) / count
            distances = (means - class_mean).norm(dim=1)
            nearest = left.pop(int(distances.argmin().item()))
            total = total + directions[nearest]
            chosen.append(nearest)
    return sorted(chosen)


def surprising(
    surprises: Float[Tensor, " examples"], labels: Sequence[int], per_class: int
) -> list[int]:
    """Choose at most `per_class` examples of each class with the highest surprise.

    Of equal examples, the first are chosen.

    Examples
    --------
    >>> surprising(torch.tensor([0.1, 3.0, 2.0, 0.5]), labels=[0, 1, 1, 0], per_class=1)
    [1, 3]
    """
    counts = dict.fromkeys(labels, 0)
    chosen = []
    for i in surprises.argsort(descending=True, stable=True).tolist():
        label = labels[i]
        if counts[label] < per_class:
            counts[label] += 1
            chosen.append(i)
    return sorted(chosen)


def shares(
    capacity: int, seen: Mapping[str, int], kept: Mapping[str, int], random: np.random.Generator
) -> dict[str, int]:
    """Choose randomly how many examples of each task to store, up to `capacity` in total.

    Every example seen so far is equally likely to be stored. The last task in `seen` is
    the new one. An old task can contribute only examples that are still stored; if there
    are too few of them, the new task contributes more.

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
    # Rounded up with a probability equal to the fraction: rounding down would favour the new task.
    share_of_old = 1 - seen[new] / total
    size_of_old = int(size * share_of_old + random.random())
    count_of_old = min(size_of_old, sum(kept_of_old))
    counts: list[int] = []
    if old:
        # The counts have the distribution of `count_of_old` draws from all stored examples.
        counts = random.multivariate_hypergeometric(kept_of_old, count_of_old).tolist()
    counts.append(min(size - count_of_old, kept[new]))
    return dict(zip(seen, counts, strict=True))
