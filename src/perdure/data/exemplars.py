"""Examples that are kept: which ones, and how they lie in a method's state, so that they are saved with it."""

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
from perdure.data.task import Rows, Task
from perdure.errors import RunError

Strategy = Literal["balanced", "reservoir", "herding"]


@dataclass
class Exemplars:
    """Kept examples by task: each is bytes (a text in UTF-8, or an image as it was encoded) and a label.

    A pair of texts is a JSON list.

    Examples
    --------
    >>> rows = Dataset.from_dict({"text": ["good", "bad", "fine"], "label": [1, 0, 1]})
    >>> task = Task("reviews", ("no", "yes"), train=rows, validation=rows, test=rows)
    >>> kept = Exemplars()
    >>> kept.add(task, [0, 1])
    >>> again = Exemplars.of(kept.state())
    >>> again.rows(["reviews"])[0][1]["text"][:], len(again), again.size
    (['good', 'bad'], 2, 7)
    """

    kind: str = "text"
    inputs: dict[str, list[bytes]] = field(default_factory=dict)
    labels: dict[str, list[int]] = field(default_factory=dict)
    seen: dict[str, int] = field(default_factory=dict)
    """How many examples each task had."""
    pairs: list[str] = field(default_factory=list)
    """The tasks whose examples are pairs of texts."""

    def __len__(self) -> int:
        return sum(map(len, self.labels.values()))

    @property
    def size(self) -> int:
        """In bytes, of the inputs."""
        return sum(len(value) for values in self.inputs.values() for value in values)

    def add(self, task: Task, chosen: Sequence[int]) -> None:
        """Keep these of a task's training examples."""
        data = task.train.select(list(chosen))
        self.kind = task.kind
        if task.kind == "text":
            self.inputs[task.name] = [text.encode() for text in _texts(data)]
            if "text_pair" in data.column_names and task.name not in self.pairs:
                self.pairs.append(task.name)
        else:
            self.inputs[task.name] = [images.content(value) for value in images.undecoded(data)]
        self.labels[task.name] = [int(label) for label in data["label"][:]]
        self.seen[task.name] = len(task.train)

    @property
    def counts(self) -> dict[str, int]:
        """How many are kept of each task."""
        return {task: len(labels) for task, labels in self.labels.items()}

    def thin(self, counts: Mapping[str, int], random: np.random.Generator) -> None:
        """Keep only so many of each task, drawn at random from what is kept of it."""
        for task, count in counts.items():
            chosen = sorted(random.permutation(len(self.labels[task]))[:count].tolist())
            self.inputs[task] = [self.inputs[task][i] for i in chosen]
            self.labels[task] = [self.labels[task][i] for i in chosen]

    def of_tasks(self, tasks: Sequence[str]) -> "Exemplars":
        """Only those of these tasks: others have been forgotten."""
        parts: list[Any] = [self.inputs, self.labels, self.seen]
        kept = ({name: v for name, v in values.items() if name in tasks} for values in parts)
        return Exemplars(self.kind, *kept, pairs=[name for name in self.pairs if name in tasks])

    def rows(self, tasks: Mapping[str, int] | Sequence[str]) -> Rows:
        """The examples of these tasks, as a stream has them; a mapping says how many classes each has.

        Raises
        ------
        RunError
            A task has no such class.
        """
        found = []
        for task in tasks:
            if self.labels.get(task):
                if (
                    isinstance(tasks, Mapping)
                    and not 0 <= min(self.labels[task]) <= max(self.labels[task]) < tasks[task]
                ):
                    raise RunError(
                        f"An example of `{task}` that the run keeps is of no class that the task has."
                    )
                values = self.inputs[task]
                labels = {"label": self.labels[task]}
                if self.kind == "text":
                    texts = [value.decode(errors="replace") for value in values]
                    data = Dataset.from_dict(_columns(texts, task in self.pairs) | labels)
                else:
                    encoded = [{"bytes": value, "path": None} for value in values]
                    data = Dataset.from_dict({"image": encoded, **labels}).cast_column(
                        "image", Image()
                    )
                found.append((task, data))
        return found

    # -- as a method's state

    def state(self) -> dict[str, Any]:
        """Tensors and JSON values."""
        values = [value for of_task in self.inputs.values() for value in of_task]
        return {
            "examples": torch.from_numpy(np.frombuffer(b"".join(values), dtype=np.uint8).copy()),
            "lengths": torch.tensor([len(value) for value in values], dtype=torch.int64),
            "labels": torch.tensor(
                [label for of_task in self.labels.values() for label in of_task], dtype=torch.int64
            ),
            "kept": {
                "kind": self.kind,
                "tasks": {t: [len(self.labels[t]), self.seen[t]] for t in self.labels},
            }
            | ({"pairs": self.pairs} if self.pairs else {}),
        }

    @classmethod
    def of(cls, state: Mapping[str, Any]) -> "Exemplars":
        """From a method's state; empty if there is nothing in it.

        Raises
        ------
        RunError
            Its parts do not fit each other.
        """
        if "kept" not in state:
            return cls()
        try:
            content, lengths, labels = (
                state["examples"].numpy().tobytes(),
                state["lengths"].tolist(),
                state["labels"],
            )
            tasks: dict[str, list[int]] = state["kept"]["tasks"]
            kept, ends, place = cls(state["kept"]["kind"]), state["lengths"].cumsum(0).tolist(), 0
            counts = [count for count, _ in tasks.values()]
            if min([0, *lengths, *counts]) < 0 or [sum(lengths), len(lengths)] != [
                len(content),
                sum(counts),
            ]:
                raise ValueError(
                    f"{sum(counts)} examples, {len(lengths)} lengths, {len(content)} bytes"
                )
            for task, (count, seen) in tasks.items():
                own = range(place, place + count)
                kept.inputs[task] = [content[ends[i] - lengths[i] : ends[i]] for i in own]
                kept.labels[task], kept.seen[task] = [int(labels[i]) for i in own], int(seen)
                place += count
            kept.pairs = [task for task in state["kept"].get("pairs", []) if task in tasks]
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            raise RunError(f"The examples that the run keeps are damaged ({error}).") from error
        return kept


def _texts(data: Dataset) -> list[str]:
    """Return the texts, of pairs both in one."""
    if "text_pair" not in data.column_names:
        return data["text"][:]
    return [
        json.dumps(pair, ensure_ascii=False)
        for pair in zip(data["text"], data["text_pair"], strict=True)
    ]


def _columns(texts: Sequence[str], are_pairs: bool) -> dict[str, list[Any]]:
    """Return the columns that a task has, from what `_texts` gives.

    Raises
    ------
    RunError
        One should be a pair, and is none.
    """
    if not are_pairs:
        return {"text": list(texts)}
    try:
        pairs = [tuple(map(str, json.loads(text))) for text in texts]
        return {"text": [first for first, _ in pairs], "text_pair": [second for _, second in pairs]}
    except (ValueError, TypeError, RecursionError) as error:
        raise RunError(f"A pair of texts that the run keeps is damaged ({error}).") from error


# -- which ones


def balanced(labels: Sequence[int], per_class: int, random: np.random.Generator) -> list[int]:
    """At most so many of each class, drawn at random."""
    order = random.permutation(len(labels)).tolist()
    return sorted(i for c in set(labels) for i in [j for j in order if labels[j] == c][:per_class])


def herded(
    features: Float[Tensor, "examples d"], labels: Sequence[int], per_class: int
) -> list[int]:
    """At most so many of each class, one after the other, each such that their mean is nearest to the class's mean.

    Of features of length one.

    References
    ----------
    Welling, Herding dynamical weights to learn, ICML 2009; Rebuffi et al., iCaRL, arXiv 1611.07725.
    """
    x = torch.nn.functional.normalize(features.double(), dim=1)
    chosen = []
    for c in sorted(set(labels)):
        own = [i for i, label in enumerate(labels) if label == c]
        mean, total, left = x[own].mean(0), torch.zeros(x.shape[1], dtype=torch.double), list(own)
        for count in range(1, min(per_class, len(own)) + 1):
            nearest = ((total + x[left]) / count - mean).norm(dim=1).argmin().item()
            total = total + x[left[int(nearest)]]
            chosen.append(left.pop(int(nearest)))
    return sorted(chosen)


def shares(
    capacity: int, seen: Mapping[str, int], kept: Mapping[str, int], random: np.random.Generator
) -> dict[str, int]:
    """How many are kept of each task, the last of which is new, so that every example seen is as likely to be there.

    So far as it can be: of old tasks only what is still kept can be, and more of the new one makes up for it.

    Examples
    --------
    >>> random = np.random.default_rng(0)
    >>> shares(10, {"old": 100, "new": 100}, {"old": 8, "new": 100}, random)
    {'old': 5, 'new': 5}
    """
    *old, new = seen
    size, before = min(capacity, sum(seen.values())), [kept[task] for task in old]
    wanted = (
        size * (1 - seen[new] / sum(seen.values())) + random.random()
    )  # rounded up as often as its fraction says
    count = min(int(wanted), sum(before))
    found = random.multivariate_hypergeometric(before, count).tolist() if old else []
    return dict(zip(old, found, strict=True)) | {new: min(size - count, kept[new])}
