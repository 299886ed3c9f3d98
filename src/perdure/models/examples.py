"""Examples as a model takes them, and batches of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils.data import ConcatDataset

# The number of examples that the model reads at a time while it is not trained.
BATCH_SIZE = 64

Collate = Callable[[list[Any]], Mapping[str, Tensor]]
"""Make the model's arguments from the inputs of several examples: tokens of texts, or images."""


@dataclass(frozen=True)
class Places:
    """The positions in a batch that predict the answers' tokens.

    Attributes
    ----------
    examples
        For each token of an answer, the example it belongs to.
    rows, columns
        The place in the model's input at which the model gives the logits of that token.
    prompts
        The number of the prompt's tokens of each example; they come first.
    joints
        What stands between each prompt and its answer.
    """

    examples: Int[Tensor, " places"]
    rows: Int[Tensor, " places"]
    columns: Int[Tensor, " places"]
    prompts: Int[Tensor, " batch"]
    joints: tuple[str, ...]


@dataclass(frozen=True)
class Batch:
    """Examples that the model reads in one pass.

    Targets and tasks may be left out if only features are computed.

    Attributes
    ----------
    inputs
        The model's own arguments, by name.
    targets
        The right answer to each example: the index of its class among those of its task (-1:
        unknown). For a language model: the token at each of the `places`.
    tasks
        The name of each example's task.
    places
        Where a language model answers.
    """

    inputs: dict[str, Tensor]
    targets: Int[Tensor, " places"] = field(
        default_factory=lambda: torch.empty(0, dtype=torch.long)
    )
    tasks: tuple[str, ...] = ()
    places: Places | None = None

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
        The name of each example's task, and the index of its class in that task (-1: unknown).
    lengths
        The number of tokens of each text (1 for images).
    collate
        Puts inputs together; texts are padded to the longest.
    without_tokens
        The texts of which the tokenizer makes no token. A placeholder stands for each, so that no
        sum is divided by a length of zero; ignore what a model answers to it.
    batch_size
        The usual size of a batch.
    cut
        The number of prompts that are longer than a language model may read.
    described
        The features for the task posterior, once they have been computed.
    """

    inputs: Sequence[object] | ConcatDataset[object]
    tasks: Sequence[str]
    labels: Sequence[int]
    lengths: Sequence[int]
    collate: Collate
    without_tokens: Sequence[int] = ()
    batch_size: int = BATCH_SIZE
    cut: int = 0
    described: Float[Tensor, "examples features"] | None = field(default=None, init=False)

    def __len__(self) -> int:
        return len(self.tasks)

    def task_names(self) -> list[str]:
        """Return the names of the tasks that the examples belong to, each once."""
        return list(dict.fromkeys(self.tasks))

    def batches(
        self,
        rows: Sequence[int] | None = None,
        *,
        size: int | None = None,
        device: torch.device | str = "cpu",
    ) -> Iterator[tuple[list[int], Batch]]:
        """Yield the row numbers of each batch, and the batch on a device.

        Examples of similar length are together, so that little is padded.

        Parameters
        ----------
        rows
            The examples to read; by default all.
        size
            The number of examples in a batch; by default `batch_size`.
        """
        size = size or self.batch_size
        if rows is None:
            rows = range(len(self))
        # `sorted` is stable: equal lengths keep the order of the rows, so runs can be repeated.
        order = sorted(rows, key=self.lengths.__getitem__)
        for start in range(0, len(order), size):
            numbers = order[start : start + size]
            yield numbers, self.batch(numbers, device)

    def batch(self, rows: Sequence[int], device: torch.device | str = "cpu") -> Batch:
        """Return these rows as one batch, on a device."""
        inputs = self.collate([self.inputs[row] for row in rows])
        moved = {name: value.to(device) for name, value in inputs.items()}
        labels = [self.labels[row] for row in rows]
        targets = torch.tensor(labels).to(device)
        return Batch(
            inputs=moved,
            targets=targets,
            tasks=tuple(self.tasks[row] for row in rows),
        )


def in_order(parts: Iterable[tuple[list[int], Tensor]]) -> Tensor:
    """Put the results of `batches`, each with its row numbers, back into the order of the rows."""
    order: list[int] = []
    results = []
    for rows, values in parts:
        order.extend(rows)
        results.append(values)
    # `argsort` inverts the permutation: it says where in `order` each row stands.
    positions = torch.tensor(order).argsort()
    return torch.cat(results)[positions]
