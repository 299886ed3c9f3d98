"""Examples as a model takes them, and batches of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

BATCH_SIZE = 64
"""The number of examples that the model reads at a time where nothing is trained."""

Collate = Callable[[Sequence[Any]], Mapping[str, Tensor]]
"""From the inputs of several examples to what the model takes."""


@dataclass(frozen=True)
class Batch:
    """Examples that the model reads at once.

    Attributes
    ----------
    inputs
        The model's own arguments, by name.
    targets
        The right answer to each example: the index of its class among those of its task (-1: not known).
    tasks
        The name of each example's task.

    Targets and tasks may be left out where only features are computed.
    """

    inputs: dict[str, Tensor]
    targets: Int[Tensor, " batch"] = field(default_factory=lambda: torch.empty(0, dtype=torch.long))
    tasks: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.tasks)


@dataclass(eq=False)
class Examples:
    """Examples ready for a model. They know how to become batches, and hold no model.

    Attributes
    ----------
    inputs
        The tokens of each text, or the images, by number.
    tasks, labels
        Of each example the name of its task, and the index of its class in that task (-1: not known).
    lengths
        In tokens (1 for images).
    collate
        Puts inputs together; texts are padded to the longest.
    without_tokens
        The texts of which the tokenizer makes no token. A place holder stands for them, so that nothing
        is divided by their length; what a model says of it is not to be used.
    batch_size
        The usual size of a batch.
    described
        The features for the task posterior, once they have been computed.
    """

    inputs: Any
    tasks: Sequence[str]
    labels: Sequence[int]
    lengths: Sequence[int]
    collate: Collate
    without_tokens: Sequence[int] = ()
    batch_size: int = BATCH_SIZE
    described: Float[Tensor, "examples features"] | None = field(default=None, init=False)

    def __len__(self) -> int:
        return len(self.tasks)

    def task_names(self) -> list[str]:
        """The tasks that the examples belong to."""
        return list(dict.fromkeys(self.tasks))

    def batches(
        self,
        rows: Sequence[int] | None = None,
        *,
        size: int | None = None,
        device: torch.device | str = "cpu",
    ) -> Iterator[tuple[list[int], Batch]]:
        """These rows (by default all), the like-long together: row numbers, and the batch on a device."""
        size = size or self.batch_size
        order = sorted(range(len(self)) if rows is None else rows, key=self.lengths.__getitem__)
        for start in range(0, len(order), size):
            numbers = order[start : start + size]
            yield numbers, self.batch(numbers, device)

    def batch(self, rows: Sequence[int], device: torch.device | str = "cpu") -> Batch:
        """These rows as one batch, on a device."""
        inputs = self.collate([self.inputs[row] for row in rows])
        targets = torch.tensor([self.labels[row] for row in rows])
        tasks = tuple(self.tasks[row] for row in rows)
        moved = {name: value.to(device) for name, value in inputs.items()}
        return Batch(moved, targets.to(device), tasks)


def in_order(parts: Iterable[tuple[list[int], Tensor]]) -> Tensor:
    """Results of batches, put back into the order of the rows."""
    rows, values = zip(*parts, strict=True)
    order = torch.tensor([index for part in rows for index in part])
    return torch.cat(values)[order.argsort()]
