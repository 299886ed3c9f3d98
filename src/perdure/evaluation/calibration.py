"""Confusion matrices, and the calibration of a classifier's confidence."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


@dataclass(frozen=True)
class Bin:
    """One bin of a reliability table: the examples with a confidence in (low, high].

    `count` is the number of these examples; `confidence` and `accuracy` are their means,
    which are None if the bin is empty.
    """

    low: float
    high: float
    count: int
    confidence: float | None
    accuracy: float | None


def confusion(
    true: Int[Tensor, " examples"], predicted: Int[Tensor, " examples"], count: int
) -> Int[Tensor, "true predicted"]:
    """Return the confusion matrix of `count` classes: rows are true, columns predicted classes.

    Examples
    --------
    >>> confusion(torch.tensor([0, 0, 1]), torch.tensor([0, 1, 1]), 2).tolist()
    [[1, 1], [0, 1]]
    """
    # Each pair (true, predicted) becomes one number, so that a single `bincount` is enough.
    pairs = true * count + predicted
    return torch.bincount(pairs, minlength=count * count).reshape(count, count)


def reliability(
    confidence: Float[Tensor, " examples"], right: Bool[Tensor, " examples"], *, bins: int = 15
) -> list[Bin]:
    """Return the reliability table, which has confidence bins of equal width from 0 to 1.

    A confidence of 0 belongs to the first bin.

    Examples
    --------
    >>> right = torch.tensor([True, True, False])
    >>> [bin.count for bin in reliability(torch.tensor([0.1, 0.5, 0.9]), right, bins=2)]
    [2, 1]
    """
    confidence = confidence.double()
    scaled = confidence * bins
    # Bins are open below and closed above; the clamp puts a confidence of exactly 0 into the first.
    numbers = scaled.ceil().long().clamp(1, bins) - 1
    table = []
    for number in range(bins):
        inside = numbers == number
        count = int(inside.sum())
        mean_confidence = mean_accuracy = None
        if count:
            mean_confidence = confidence[inside].mean().item()
            mean_accuracy = right[inside].double().mean().item()
        low = number / bins
        high = (number + 1) / bins
        table.append(
            Bin(
                low,
                high,
                count,
                mean_confidence,
                mean_accuracy,
            )
        )
    return table


def expected_calibration_error(table: Sequence[Bin]) -> float:
    """Return ECE = sum over bins of count / n · |accuracy - confidence|, with n examples in total.

    If the ECE is 0, answers with confidence p are correct with frequency p. Without
    examples it is nan. See Guo et al. 2017, arXiv 1706.04599.

    Examples
    --------
    >>> table = reliability(torch.tensor([0.75, 0.75]), torch.tensor([True, False]), bins=2)
    >>> expected_calibration_error(table)
    0.25
    """
    examples = sum(bin.count for bin in table)
    if not examples:
        return float("nan")
    gaps = []
    for bin in table:
        # An empty bin has no means, and its count of 0 removes the gap.
        gap = abs((bin.accuracy or 0) - (bin.confidence or 0))
        gaps.append(bin.count * gap)
    # `sum` of floats is compensated since Python 3.12; `+=` in the loop would round differently.
    return sum(gaps) / examples
