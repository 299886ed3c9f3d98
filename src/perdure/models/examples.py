"""Examples prepared for a model, and batches of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils.data import ConcatDataset

# The default number of examples per batch outside training.
BATCH_SIZE = 64

Collate = Callable[[list[Any]], Mapping[str, Tensor]]
"""A function that makes the model's arguments from the texts or images of several examples."""


@dataclass(frozen=True)
class Places:
    """The positions in a batch at which the tokens of the answers are predicted.

    Attributes
    ----------
    examples
        For each token of an answer, the index of its example in the batch.
    rows, columns
        For each token of an answer, the position in the model's input whose logits predict it.
    prompts
        The number of tokens in each prompt.
    joints
        The text between each prompt and its answer: a space, or an empty string.
    """

    examples: Int[Tensor, " places"]
    rows: Int[Tensor, " places"]
    columns: Int[Tensor, " places"]
    prompts: Int[Tensor, " batch"]
    joints: tuple[str, ...]


@dataclass(frozen=True)
class Batch:
    """A batch of examples that the model reads in one forward pass.

    `targets` and `tasks` can be omitted if only features are computed.

    Attributes
    ----------
    inputs
        The keyword arguments of the model.
    targets
        The correct answer to each example: the index of its class among the classes of
        its task, or -1 if it is unknown. For a language model, the correct token at each
        of the `places`.
    tasks
        The name of each example's task.
    places
        The positions at which a language model predicts the answers; None for an encoder.
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
    """Examples prepared for a model, from which batches can be made.

    They can be pickled without the model, because they do not refer to it.

    Attributes
    ----------
    inputs
        The tokens of each text, or the images.
    tasks, labels
        The name of each example's task, and the index of its class in that task (-1 if unknown).
    lengths
        The number of tokens in each text; 1 for images.
    collate
        The function that combines inputs into tensors, padding texts to the longest.
    without_tokens
        The indices of the texts for which the tokenizer returns no tokens. Each is
        replaced by a placeholder to avoid a division by zero. The model's output for a
        placeholder must be ignored.
    batch_size
        The default batch size.
    cut
        The number of prompts that were cut to the maximum length.
    described
        The features for the task posterior, once they have been computed.
    answered
        Logits of models that belong to one task, by the digest of the model and its head.
    pooled
        The features of the last model that heads have read, by the digest of its change.
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
    answered: dict[str, Tensor] = field(default_factory=dict, init=False)
    pooled: dict[str, Tensor] = field(default_factory=dict, init=False)

    def __len__(self) -> int:
        return len(self.tasks)

    def task_names(self) -> list[str]:
        """Return the names of the tasks that the examples belong to, without duplicates."""
        return list(dict.fromkeys(self.tasks))

    def batches(
        self,
        rows: Sequence[int] | None = None,
        *,
        size: int | None = None,
        device: torch.device | str = "cpu",
    ) -> Iterator[tuple[list[int], Batch]]:
        """Yield batches on a device, each with the indices of its examples.

        Examples of similar length are put into the same batch, to reduce padding.

        Parameters
        ----------
        rows
            The indices of the examples to read; by default all.
        size
            The number of examples per batch; by default `batch_size`.
        """
        for numbers in self.numbers(rows, size=size or self.batch_size):
            yield numbers, self.batch(numbers, device)

    def numbers(self, rows: Sequence[int] | None = None, *, size: int) -> Iterator[list[int]]:
        """Yield the indices of the examples of each batch, as in `batches`."""
        if rows is None:
            rows = range(len(self))
        # `sorted` is stable: examples of equal length keep their order, so runs are reproducible.
        order = sorted(rows, key=self.lengths.__getitem__)
        for start in range(0, len(order), size):
            yield order[start : start + size]

    def batch(self, rows: Sequence[int], device: torch.device | str = "cpu") -> Batch:
        """Return the examples with indices `rows` as one batch, on a device."""
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
    """Concatenate results computed batch by batch, sorted by the indices of the examples."""
    order: list[int] = []
    results = []
    for rows, values in parts:
        order.extend(rows)
        results.append(values)
    # `argsort` inverts the permutation: it returns the position of each row in `order`.
    positions = torch.tensor(order).argsort()
    return torch.cat(results)[positions]
