"""Examples that are kept: which ones, and how they lie in a method's state, so that they are saved with it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from datasets import Dataset, Image
from jaxtyping import Float
from torch import Tensor

from perdure.stream import Rows, Task

Strategy = Literal["balanced", "reservoir", "herding"]


@dataclass
class Exemplars:
    """Kept examples by task: each is bytes (a text in UTF-8, or an image as it was encoded) and a label.

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
            self.inputs[task.name] = [text.encode() for text in data["text"][:]]
        else:
            encoded = data.select_columns(["image"]).cast_column("image", Image(decode=False))
            self.inputs[task.name] = [_content(value) for value in encoded["image"]]
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
        return Exemplars(self.kind, *({name: v for name, v in values.items() if name in tasks} for values in parts))

    def rows(self, tasks: Sequence[str]) -> Rows:
        """The examples of these tasks, as a stream has them."""
        found = []
        for task in tasks:
            if self.labels.get(task):
                values = self.inputs[task]
                labels = {"label": self.labels[task]}
                if self.kind == "text":
                    data = Dataset.from_dict({"text": [value.decode() for value in values], **labels})
                else:
                    images = [{"bytes": value, "path": None} for value in values]
                    data = Dataset.from_dict({"image": images, **labels}).cast_column("image", Image())
                found.append((task, data))
        return found

    # -- as a method's state

    def state(self) -> dict[str, Any]:
        """Tensors and JSON values."""
        values = [value for of_task in self.inputs.values() for value in of_task]
        return {
            "examples": torch.from_numpy(np.frombuffer(b"".join(values), dtype=np.uint8).copy()),
            "lengths": torch.tensor([len(value) for value in values], dtype=torch.int64),
            "labels": torch.tensor([label for of_task in self.labels.values() for label in of_task], dtype=torch.int64),
            "kept": {"kind": self.kind, "tasks": {t: [len(self.labels[t]), self.seen[t]] for t in self.labels}},
        }

    @classmethod
    def of(cls, state: Mapping[str, Any]) -> "Exemplars":
        """From a method's state; empty if there is nothing in it."""
        if "kept" not in state:
            return cls()
        content, ends = state["examples"].numpy().tobytes(), state["lengths"].cumsum(0).tolist()
        starts, labels = [0, *ends], state["labels"].tolist()
        kept, place = cls(state["kept"]["kind"]), 0
        for task, (count, seen) in state["kept"]["tasks"].items():
            own = range(place, place + count)
            kept.inputs[task] = [content[starts[i] : ends[i]] for i in own]
            kept.labels[task], kept.seen[task] = [labels[i] for i in own], seen
            place += count
        return kept


def _content(value: Mapping[str, Any]) -> bytes:
    """An image as it is encoded: in the table, or in a file."""
    return value["bytes"] or Path(value["path"]).read_bytes()


# -- which ones


def balanced(labels: Sequence[int], per_class: int, random: np.random.Generator) -> list[int]:
    """At most so many of each class, drawn at random."""
    order = random.permutation(len(labels)).tolist()
    return sorted(i for c in set(labels) for i in [j for j in order if labels[j] == c][:per_class])


def herded(features: Float[Tensor, "examples d"], labels: Sequence[int], per_class: int) -> list[int]:
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
    """How many examples of each task a uniform sample of all that were seen has, as far as they are still kept.

    Examples
    --------
    >>> random = np.random.default_rng(0)
    >>> shares(10, {"old": 100, "new": 100}, {"old": 8, "new": 100}, random)
    {'old': 5, 'new': 5}
    """
    wanted = random.multivariate_hypergeometric(list(seen.values()), min(capacity, sum(seen.values())))
    found = {task: min(int(n), kept[task]) for task, n in zip(seen, wanted, strict=True)}
    room = min(capacity, sum(kept.values())) - sum(found.values())
    for task in reversed(list(seen)):  # what is no longer there is made up for by the newest
        more = min(room, kept[task] - found[task])
        found[task], room = found[task] + more, room - more
    return found
