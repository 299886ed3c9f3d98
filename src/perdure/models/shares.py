"""The share of each process when several processes measure one model.

Every process makes the same number of passes, over batches of the same size, because the
processes of a sharded model compute each pass together.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from perdure.models.examples import Batch, Examples

T = TypeVar("T")
Values = TypeVar("Values", Tensor, Sequence)


def processes() -> int:
    """Return the number of processes that compute together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def batches(
    examples: Examples, device: torch.device, rows: Sequence[int] | None = None
) -> Iterator[tuple[list[int], Batch]]:
    """Yield this process's share of each batch, with the indices of its examples.

    All shares have the same size, so an example may be in the shares of two processes;
    `gathered` counts it once.
    """
    count = processes()
    if count == 1:
        yield from examples.batches(rows, device=device)
        return
    for numbers in examples.numbers(rows, size=count * examples.batch_size):
        share = numbers[dist.get_rank() :: count]
        size = -(-len(numbers) // count)  # rounded up
        share += numbers[: size - len(share)]
        yield share, examples.batch(share, device)


def gathered(parts: Iterable[tuple[list[int], Values]]) -> list[tuple[list[int], Values]]:
    """Return the results of all processes, each with the indices of its examples.

    Parameters
    ----------
    parts
        The results of this process, with one value per example. The tensors of several
        processes are returned on the CPU.
    """
    parts = list(parts)
    if processes() == 1:
        return parts
    sent = []
    for rows, values in parts:
        sent.append((rows, values.cpu() if isinstance(values, Tensor) else values))
    seen: set[int] = set()
    results = []
    for rows, values in _everyone(sent):
        new = [position for position, row in enumerate(rows) if row not in seen]
        numbers = [rows[position] for position in new]
        seen.update(numbers)
        if isinstance(values, Tensor):
            results.append((numbers, values[new]))
        else:
            results.append((numbers, [values[position] for position in new]))
    return results


def agreed(answer: bool) -> bool:
    """Return True if all processes give this answer, all of which must ask."""
    return all(_everyone([answer]))


def union(values: Iterable[T]) -> list[T]:
    """Return the different values of all processes, in the same order in each of them."""
    return list(dict.fromkeys(_everyone(list(values))))


def _everyone(values: list[T]) -> list[T]:
    """Return the values of all processes, in the order of the processes."""
    if processes() == 1:
        return values
    lists: list[list[T]] = [[] for _ in range(processes())]
    dist.all_gather_object(lists, values)
    return [value for of_process in lists for value in of_process]
