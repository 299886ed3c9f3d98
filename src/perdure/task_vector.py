"""Task vectors: what an adapter adds to the weights, kept low-rank while that is exact."""

from __future__ import annotations

import functools
import operator
from collections.abc import ItemsView, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from perdure.errors import InputError


@dataclass(frozen=True)
class LowRank:
    """A matrix B A, as its factors.

    Examples
    --------
    >>> one = LowRank(torch.ones(2, 1), torch.ones(1, 3))
    >>> (one + 2.0 * one).dense().tolist()
    [[3.0, 3.0, 3.0], [3.0, 3.0, 3.0]]
    """

    B: Float[Tensor, "out rank"]
    A: Float[Tensor, "rank in"]

    def __add__(self, other: LowRank) -> LowRank:
        """Exact, by setting the factors side by side: B₁A₁ + B₂A₂ = [B₁ B₂] [A₁; A₂]."""
        return LowRank(torch.cat([self.B, other.B], dim=1), torch.cat([self.A, other.A]))

    def __mul__(self, factor: float) -> LowRank:
        return LowRank(factor * self.B, self.A)

    __rmul__ = __mul__

    def dense(self) -> Float[Tensor, "out in"]:
        return self.B @ self.A


@dataclass(frozen=True)
class TaskVector:
    """What a task adds, by the name of a layer (delta space: `LowRank`) or of a parameter (factor space: a tensor).

    A layer that one vector lacks is zero there.

    Examples
    --------
    >>> one = TaskVector({"w": torch.tensor([3.0, 4.0])})
    >>> (one * 2.0 - one).norm()
    5.0
    """

    entries: Mapping[str, LowRank | Tensor]

    def __getitem__(self, name: str) -> LowRank | Tensor:
        return self.entries[name]

    def __len__(self) -> int:
        return len(self.entries)

    def items(self) -> ItemsView[str, LowRank | Tensor]:
        return self.entries.items()

    def __add__(self, other: TaskVector) -> TaskVector:
        both = dict(self.entries)
        for name, value in other.items():
            if name in both and type(both[name]) is not type(value):
                raise InputError(f"Task vectors of different spaces cannot be added (`{name}`).")
            both[name] = both[name] + value if name in both else value  # pyright: ignore
        return TaskVector(both)

    def __mul__(self, factor: float) -> TaskVector:
        return TaskVector({name: value * factor for name, value in self.items()})

    __rmul__ = __mul__

    def __sub__(self, other: TaskVector) -> TaskVector:
        return self + other * -1.0

    def dense(self, name: str) -> Tensor:
        """The change of one layer or parameter, as a full tensor."""
        value = self.entries[name]
        return value.dense() if isinstance(value, LowRank) else value

    def norm(self) -> float:
        """The Frobenius norm over all layers."""
        return sum(self.dense(name).double().square().sum().item() for name in self.entries) ** 0.5


def total(vectors: Sequence[TaskVector]) -> TaskVector:
    """The sum of task vectors."""
    return functools.reduce(operator.add, vectors)
