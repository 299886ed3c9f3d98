"""Task vectors: what an adapter adds to the weights, kept low-rank while that is exact."""

from __future__ import annotations

import functools
from collections.abc import Callable, ItemsView, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from perdure.errors import InputError


@dataclass(frozen=True, eq=False)
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

    @property
    def shape(self) -> torch.Size:
        return torch.Size((self.B.shape[0], self.A.shape[1]))

    @property
    def rank(self) -> int:
        """The number of columns of B: the rank of B A is at most that."""
        return self.A.shape[0]

    def __add__(self, other: LowRank) -> LowRank:
        """Exact, by setting the factors side by side: B₁A₁ + B₂A₂ = [B₁ B₂] [A₁; A₂]."""
        return LowRank(torch.cat([self.B, other.B], dim=1), torch.cat([self.A, other.A]))

    def __mul__(self, factor: float) -> LowRank:
        return LowRank(factor * self.B, self.A)

    __rmul__ = __mul__

    def dense(self) -> Float[Tensor, "out in"]:
        return self.B @ self.A

    def svd(self) -> tuple[Float[Tensor, "out r"], Float[Tensor, " r"], Float[Tensor, "r in"]]:
        """U, S and Vᵀ with U diag(S) Vᵀ = B A, r = min(out, in, rank), by QR of both factors and a small SVD.

        In single precision at least. Singular vectors of a value that is zero are arbitrary:
        the function `svd` leaves them out.
        """
        wide = torch.promote_types(self.B.dtype, torch.float32)
        left, upper = torch.linalg.qr(self.B.to(wide))
        right, lower = torch.linalg.qr(self.A.T.to(wide))
        U, S, Vh = torch.linalg.svd(upper @ lower.T, full_matrices=False)
        return tuple(part.to(self.B.dtype) for part in (left @ U, S, Vh @ right.T))

    def truncate(self, rank: int) -> LowRank:
        """The nearest matrix of at most this rank (Eckart & Young), exact and itself if it has no more."""
        if self.rank <= rank:
            return self
        U, S, Vh = self.svd()
        return LowRank(U[:, :rank] * S[:rank], Vh[:rank])


@dataclass(frozen=True)
class Deferred:
    """A full tensor that is made when it is wanted and not kept, so that one at a time is in memory.

    Examples
    --------
    >>> Deferred(torch.Size((2,)), lambda: torch.ones(2)).dense().tolist()
    [1.0, 1.0]
    """

    shape: torch.Size
    make: Callable[[], Tensor]

    def __mul__(self, factor: float) -> Deferred:
        return Deferred(self.shape, lambda: factor * self.make())

    __rmul__ = __mul__

    def dense(self) -> Tensor:
        return self.make()


Entry = LowRank | Deferred | Tensor
T = TypeVar("T")


class OnDemand(Mapping[str, T]):
    """Entries that are made each time they are asked for, and not kept.

    Examples
    --------
    >>> TaskVector(OnDemand({"w": lambda: torch.ones(2)})).dense("w").tolist()
    [1.0, 1.0]
    """

    def __init__(self, makers: Mapping[str, Callable[[], T]]):
        self._makers = makers

    def __getitem__(self, name: str) -> T:
        return self._makers[name]()

    def __contains__(self, name: object) -> bool:
        return name in self._makers

    def __iter__(self) -> Iterator[str]:
        return iter(self._makers)

    def __len__(self) -> int:
        return len(self._makers)


def dense(entry: Entry) -> Tensor:
    """A full tensor."""
    return entry if isinstance(entry, Tensor) else entry.dense()


def svd(entry: Entry) -> tuple[Float[Tensor, "out r"], Float[Tensor, " r"], Float[Tensor, "r in"]]:
    """The singular value decomposition of a matrix, reduced to its numerical rank: what is left of S is not zero.

    Zero means below rounding: at most 1e-6 of the greatest, or as many roundings as there are values. A direction whose
    singular value is zero is arbitrary, and no rule may depend on it.
    """
    if isinstance(entry, LowRank):
        U, S, Vh = entry.svd()
    else:
        whole = dense(entry)
        wide = torch.promote_types(whole.dtype, torch.float32)
        U, S, Vh = (
            part.to(whole.dtype) for part in torch.linalg.svd(whole.to(wide), full_matrices=False)
        )
    rank = int((max(1e-6, len(S) * torch.finfo(S.dtype).eps) * S[:1] < S).sum())
    return U[:, :rank], S[:rank], Vh[:rank]


def inner(left: Entry, right: Entry) -> float:
    """The Frobenius inner product <left, right>, in double precision; no full matrix for two low-rank ones."""
    if left.shape != right.shape:
        raise InputError(
            f"An inner product needs equal shapes, got {tuple(left.shape)} and {tuple(right.shape)}."
        )
    if isinstance(left, LowRank) and isinstance(right, LowRank):
        columns, rows = left.B.double().T @ right.B.double(), left.A.double() @ right.A.double().T
        return (columns * rows).sum().item()
    return (dense(left).double() * dense(right).double()).sum().item()


@dataclass(frozen=True, eq=False)
class TaskVector:
    """What a task adds, by the name of a layer (delta space: `LowRank`) or of a parameter (factor space: a tensor).

    A layer that one vector lacks is zero there. What a rule cannot keep low-rank is a tensor, or `Deferred`.

    Examples
    --------
    >>> one = TaskVector({"w": torch.tensor([3.0, 4.0])})
    >>> (one * 2.0 - one).norm()
    5.0
    """

    entries: Mapping[str, Entry]

    def __getitem__(self, name: str) -> Entry:
        return self.entries[name]

    def __contains__(self, name: object) -> bool:
        return name in self.entries

    def __len__(self) -> int:
        return len(self.entries)

    def items(self) -> ItemsView[str, Entry]:
        return self.entries.items()

    def __add__(self, other: TaskVector) -> TaskVector:
        both = dict(self.entries)
        for name, value in other.items():
            both[name] = _plus(name, both[name], value) if name in both else value
        return TaskVector(both)

    def __mul__(self, factor: float) -> TaskVector:
        return TaskVector({name: value * factor for name, value in self.items()})

    __rmul__ = __mul__

    def __sub__(self, other: TaskVector) -> TaskVector:
        return self + other * -1.0

    def dense(self, name: str) -> Tensor:
        """The change of one layer or parameter, as a full tensor."""
        return dense(self.entries[name])

    def made(self) -> TaskVector:
        """With every deferred tensor made, for those who use it more than once."""
        return TaskVector({k: v.dense() if isinstance(v, Deferred) else v for k, v in self.items()})

    def inner(self, other: TaskVector) -> float:
        """The Frobenius inner product over all layers."""
        return sum(inner(value, other[name]) for name, value in self.items() if name in other)

    def norm(self) -> float:
        """The Frobenius norm over all layers."""
        return sum(max(0.0, _square(value)) for value in self.entries.values()) ** 0.5

    def cosine(self, other: TaskVector) -> float:
        """The cosine of the angle between two task vectors; 0 if one of them is zero.

        Examples
        --------
        >>> a, b = TaskVector({"w": torch.tensor([1.0, 0.0])}), TaskVector({"w": torch.tensor([1.0, 1.0])})
        >>> round(a.cosine(b), 4)
        0.7071
        """
        norms = self.norm() * other.norm()
        return self.inner(other) / norms if norms else 0.0

    def truncate(self, rank: int) -> TaskVector:
        """Each low-rank layer at most of this rank, the nearest there is; of other entries nothing changes."""
        return TaskVector(
            {k: v.truncate(rank) if isinstance(v, LowRank) else v for k, v in self.items()}
        )


def _plus(name: str, left: Entry, right: Entry) -> Entry:
    if left.shape != right.shape:
        shapes = f"{tuple(left.shape)} in one task vector, {tuple(right.shape)} in another"
        raise InputError(
            f"`{name}` has the shape {shapes}: they belong to different models, or different spaces."
        )
    if isinstance(left, LowRank) and isinstance(right, LowRank):
        return left + right
    if isinstance(left, Tensor) and isinstance(right, Tensor):
        return left + right
    return Deferred(left.shape, lambda: dense(left) + dense(right))


def _square(value: Entry) -> float:
    whole = value.dense() if isinstance(value, Deferred) else value  # made once, not twice
    return inner(whole, whole)


def by_depth(names: Iterable[str], parts: int) -> dict[str, int]:
    """Which of so many parts of equal depth each layer is in, by the first number in its name; without one, the first.

    Examples
    --------
    >>> by_depth(["embed", "layer.0.q", "layer.1.q", "layer.2.q", "layer.3.q"], 2)
    {'embed': 0, 'layer.0.q': 0, 'layer.1.q': 0, 'layer.2.q': 1, 'layer.3.q': 1}
    """
    blocks = {
        name: int(next((part for part in name.split(".") if part.isdigit()), -1)) for name in names
    }
    depth = {
        block: i
        for i, block in enumerate(sorted({block for block in blocks.values() if block >= 0}))
    }
    return {
        name: depth.get(block, 0) * parts // max(1, len(depth)) for name, block in blocks.items()
    }


def total(vectors: Sequence[TaskVector]) -> TaskVector:
    """The sum of task vectors. Low-rank layers are put together once, not vector by vector."""
    entries: dict[str, list[Entry]] = {}
    for vector in vectors:
        for name, value in vector.items():
            entries.setdefault(name, []).append(value)
    return TaskVector({name: _total(name, values) for name, values in entries.items()})


def _total(name: str, values: list[Entry]) -> Entry:
    low = [
        value for value in values if isinstance(value, LowRank) and value.shape == values[0].shape
    ]
    if len(low) == len(values) > 1:
        return LowRank(
            torch.cat([value.B for value in low], dim=1), torch.cat([value.A for value in low])
        )
    return functools.reduce(functools.partial(_plus, name), values)


def shapes(vectors: Mapping[str, TaskVector]) -> dict[str, torch.Size]:
    """The shape of every layer that any of the task vectors changes, in their own order.

    Raises
    ------
    InputError
        A layer has not one shape.
    """
    found: dict[str, torch.Size] = {}
    for task, vector in vectors.items():
        for name, value in vector.items():
            if found.setdefault(name, value.shape) != value.shape:
                both = f"{tuple(value.shape)} in `{task}`, {tuple(found[name])} before"
                raise InputError(
                    f"`{name}` has the shape {both}: they belong to different models, or spaces."
                )
    return found
