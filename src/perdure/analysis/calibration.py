"""What a classifier takes for what, and whether its confidence is the share that it gets right."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


@dataclass(frozen=True)
class Bin:
    """The examples whose confidence is in (low, high]: how many, their mean confidence, and the share that is right.

    The means of a bin without examples are None.
    """

    low: float
    high: float
    count: int
    confidence: float | None
    accuracy: float | None


def confusion(
    true: Int[Tensor, " examples"], found: Int[Tensor, " examples"], count: int
) -> Int[Tensor, "true found"]:
    """How often each of `count` kinds (a row) was found to be each (a column).

    Examples
    --------
    >>> confusion(torch.tensor([0, 0, 1]), torch.tensor([0, 1, 1]), 2).tolist()
    [[1, 1], [0, 1]]
    """
    return torch.bincount(true * count + found, minlength=count * count).reshape(count, count)


def reliability(
    confidence: Float[Tensor, " examples"], right: Bool[Tensor, " examples"], *, bins: int = 15
) -> list[Bin]:
    """The reliability table: bins of equal width from 0 to 1. A confidence of 0 is in the first.

    Examples
    --------
    >>> [bin.count for bin in reliability(torch.tensor([0.1, 0.5, 0.9]), torch.tensor([True, True, False]), bins=2)]
    [2, 1]
    """
    confidence = confidence.double()
    place = (confidence * bins).ceil().long().clamp(1, bins) - 1
    found = []
    for i in range(bins):
        inside, low, high = place == i, i / bins, (i + 1) / bins
        count = int(inside.sum())
        means = (
            (confidence[inside].mean().item(), right[inside].double().mean().item())
            if count
            else (None, None)
        )
        found.append(Bin(low, high, count, *means))
    return found


def expected_calibration_error(table: Sequence[Bin]) -> float:
    """ECE = sum over bins of count / n · |accuracy - confidence| (Guo et al. 2017, arXiv 1706.04599).

    0: of the answers given with confidence p, a share p is right. nan without examples.

    Examples
    --------
    >>> table = reliability(torch.tensor([0.75, 0.75]), torch.tensor([True, False]), bins=2)
    >>> expected_calibration_error(table)
    0.25
    """
    n = sum(bin.count for bin in table)
    gaps = [bin.count * abs((bin.accuracy or 0) - (bin.confidence or 0)) for bin in table]
    return sum(gaps) / n if n else float("nan")
