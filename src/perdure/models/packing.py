"""Pack several short examples into one row of a batch, each attending only to itself.

The attention mask is passed explicitly. If transformers derived it from the positions, a
cache, or an attention implementation that ignores positions, would silently let examples
attend to each other.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

# The length of a row in tokens, unless an example is longer. Attention takes quadratic time.
LINE = 256


def arranged(lengths: Sequence[int]) -> tuple[list[int], list[int]]:
    """Return the row of each example, and the column at which the example begins.

    The longest examples are placed first, each in the first row that has room for it.

    Examples
    --------
    >>> arranged([100, 200, 50, 30])
    ([1, 0, 0, 1], [0, 0, 200, 100])
    """
    capacity = max(LINE, *lengths)
    used: list[int] = []
    lines = [0] * len(lengths)
    starts = [0] * len(lengths)
    by_length = sorted(range(len(lengths)), key=lengths.__getitem__, reverse=True)
    for number in by_length:
        length = lengths[number]
        line = 0
        while line < len(used) and used[line] + length > capacity:
            line += 1
        if line == len(used):
            used.append(0)
        lines[number] = line
        starts[number] = used[line]
        used[line] += length
    return lines, starts


def inputs(
    sequences: Sequence[Sequence[int]], lines: Sequence[int], starts: Sequence[int], pad: int
) -> dict[str, Tensor]:
    """Return the inputs of a causal model: tokens, positions and the attention mask."""
    width = 0
    for start, sequence in zip(starts, sequences, strict=True):
        width = max(width, start + len(sequence))
    shape = (max(lines) + 1, width)
    tokens = torch.full(shape, pad)
    positions = torch.zeros(shape, dtype=torch.long)
    # Padding also has an owner, -1, so that each token attends at least to itself. A
    # token that attends to nothing would not get a finite output.
    owners = torch.full(shape, -1)
    for number, sequence in enumerate(sequences):
        end = starts[number] + len(sequence)
        columns = slice(starts[number], end)
        line = lines[number]
        tokens[line, columns] = torch.tensor(sequence)
        positions[line, columns] = torch.arange(len(sequence))
        owners[line, columns] = number
    same_owner = owners[:, :, None] == owners[:, None, :]
    sees = same_owner.tril()[:, None]
    smallest = torch.finfo(torch.float32).min
    mask = torch.zeros(sees.shape).masked_fill(~sees, smallest)
    return {"input_ids": tokens, "position_ids": positions, "attention_mask": mask}
