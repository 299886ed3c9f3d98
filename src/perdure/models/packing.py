"""Several short examples in one line of a batch, each of which sees itself alone.

The mask and the positions are given, rather than left to transformers to find out from the
positions: there a cache, or an attention implementation that does not look, lets examples see each
other without a word.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

LINE = 256
"""The tokens of a line, unless an example is longer: the time of attention grows with the square."""


def arranged(lengths: Sequence[int]) -> tuple[list[int], list[int]]:
    """Return the line of each example, and the column at which it begins there.

    The longest come first, each in the first line that has room for it.

    Examples
    --------
    >>> arranged([100, 200, 50, 30])
    ([1, 0, 0, 1], [0, 0, 200, 100])
    """
    capacity = max(LINE, *lengths)
    filled: list[int] = []
    lines, starts = [0] * len(lengths), [0] * len(lengths)
    for number in sorted(range(len(lengths)), key=lengths.__getitem__, reverse=True):
        fits = (i for i, used in enumerate(filled) if used + lengths[number] <= capacity)
        line = next(fits, len(filled))
        if line == len(filled):
            filled.append(0)
        lines[number] = line
        starts[number] = filled[line]
        filled[line] += lengths[number]
    return lines, starts


def inputs(
    sequences: Sequence[Sequence[int]], lines: Sequence[int], starts: Sequence[int], pad: int
) -> dict[str, Tensor]:
    """Return what a causal model takes: tokens, positions, and a mask of which token sees which.

    A place that is padding sees itself: a token that sees none would be given no finite number.
    """
    ends = [start + len(tokens) for start, tokens in zip(starts, sequences, strict=True)]
    shape = (max(lines) + 1, max(ends))
    ids = torch.full(shape, pad)
    positions = torch.zeros(shape, dtype=torch.long)
    owners = torch.full(shape, -1)
    for number, tokens in enumerate(sequences):
        place = (lines[number], slice(starts[number], ends[number]))
        ids[place] = torch.tensor(tokens)
        positions[place] = torch.arange(len(tokens))
        owners[place] = number
    same = owners[:, :, None] == owners[:, None, :]
    sees = same.tril()[:, None]
    mask = torch.zeros(sees.shape).masked_fill(~sees, torch.finfo(torch.float32).min)
    return {"input_ids": ids, "position_ids": positions, "attention_mask": mask}
