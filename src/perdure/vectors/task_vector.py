"""Task vectors: the changes an adapter makes to the weights, low-rank as long as that is exact."""

from __future__ import annotations

import functools
from collections.abc import Callable, ItemsView, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from perdure.errors import InputError
from perdure.storage.tensors import digest_of


@dataclass(frozen=True, eq=False)
class LowRank:
    """A matrix B A, stored as its factors.

    Examples
    --------
    >>> ones = LowRank(torch.ones(2, 1), torch.ones(1, 3))
    >>> (ones + 2.0 * ones).dense().tolist()
    [[3.0, 3.0, 3.0], [3.0, 3.0, 3.0]]
    """

    B: Float[Tensor, "out rank"]
    A: Float[Tensor, "rank in"]

    @property
    def shape(self) -> torch.Size:
        return torch.Size((self.B.shape[0], self.A.shape[1]))

    @property
    def rank(self) -> int:
        """The number of columns of B, which is an upper bound on the rank of B A."""
        return self.A.shape[0]

    def __add__(self, other: LowRank) -> LowRank:
        """Add exactly, by concatenating the factors: B₁A₁ + B₂A₂ = [B₁ B₂] [A₁; A₂]."""
        B = torch.cat([self.B, other.B], dim=1)
        A = torch.cat([self.A, other.A])
        return LowRank(B, A)

    def __mul__(self, factor: float) -> LowRank:
        return LowRank(factor * self.B, self.A)

    __rmul__ = __mul__

    def dense(self) -> Float[Tensor, "out in"]:
        return self.B @ self.A

    def svd(self) -> tuple[Float[Tensor, "out r"], Float[Tensor, " r"], Float[Tensor, "r in"]]:
        """Return U, S and Vᵀ such that U diag(S) Vᵀ = B A, with r = min(out, in, rank) values.

        They are computed with the QR decompositions of both factors and a small SVD, in
        at least single precision. The singular vectors of singular values that are zero
        are arbitrary; the function `svd` omits them.
        """
        # torch has no QR or SVD in half precision.
        precision = torch.promote_types(self.B.dtype, torch.float32)
        left, upper = torch.linalg.qr(self.B.to(precision))
        right, lower = torch.linalg.qr(self.A.T.to(precision))
        # B A = left (upper lowerᵀ) rightᵀ, and the product in brackets is only rank × rank.
        core = upper @ lower.T
        U, S, Vh = torch.linalg.svd(core, full_matrices=False)
        dtype = self.B.dtype
        return (
            (left @ U).to(dtype),
            S.to(dtype),
            (Vh @ right.T).to(dtype),
        )

    def truncate(self, rank: int) -> LowRank:
        """Return the closest matrix whose rank is at most `rank` (Eckart & Young).

        If the factors have no more than `rank` columns, the matrix is returned unchanged.
        """
        if self.rank <= rank:
            return self
        U, S, Vh = self.svd()
        B = U[:, :rank] * S[:rank]
        return LowRank(B, Vh[:rank])

    def padded(self, rank: int) -> LowRank:
        """Return the same matrix with its factors padded with zeros to at least the given rank."""
        missing = max(0, rank - self.rank)
        out, width = self.shape
        return self + LowRank(self.B.new_zeros(out, missing), self.A.new_zeros(missing, width))


@dataclass(frozen=True)
class Deferred:
    """A full tensor that is computed on request and not stored, so only one is in memory at a time.

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
    """A mapping whose values are computed on each access and not stored.

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
    """Return an entry as a full tensor."""
    return entry if isinstance(entry, Tensor) else entry.dense()


def svd(entry: Entry) -> tuple[Float[Tensor, "out r"], Float[Tensor, " r"], Float[Tensor, "r in"]]:
    """Return the singular value decomposition U, S, Vᵀ of a matrix, reduced to its numerical rank.

    Singular values that are zero up to rounding are omitted: those that are at most 1e-6
    of the largest one, or at most the accumulated rounding error, if that is larger. The
    directions of such values are arbitrary, and no rule may depend on them.
    """
    if isinstance(entry, LowRank):
        U, S, Vh = entry.svd()
    else:
        U, S, Vh = _dense_svd(dense(entry))
    roundings = len(S) * torch.finfo(S.dtype).eps
    # `S[:1]` rather than `S[0]`: a matrix without rows or columns has no singular value.
    largest = S[:1]
    smallest = max(1e-6, roundings) * largest
    rank = int((smallest < S).sum())
    return U[:, :rank], S[:rank], Vh[:rank]


def _dense_svd(
    matrix: Float[Tensor, "out in"],
) -> tuple[Float[Tensor, "out r"], Float[Tensor, " r"], Float[Tensor, "r in"]]:
    dtype = matrix.dtype
    # torch has no SVD in half precision.
    precision = torch.promote_types(dtype, torch.float32)
    U, S, Vh = torch.linalg.svd(matrix.to(precision), full_matrices=False)
    return (
        U.to(dtype),
        S.to(dtype),
        Vh.to(dtype),
    )


def inner(left: Entry, right: Entry) -> float:
    """Return the Frobenius inner product <left, right>, in double precision.

    If both entries are low-rank, no full matrix is computed.
    """
    if left.shape != right.shape:
        raise InputError(
            "An inner product needs equal shapes, got "
            f"{tuple(left.shape)} and {tuple(right.shape)}."
        )
    if isinstance(left, LowRank) and isinstance(right, LowRank):
        # trace((B₁A₁)ᵀ B₂A₂) = sum of (B₁ᵀB₂) ∘ (A₁A₂ᵀ), which are both rank × rank.
        columns = left.B.double().T @ right.B.double()
        rows = left.A.double() @ right.A.double().T
        product = columns * rows
    else:
        product = dense(left).double() * dense(right).double()
    return product.sum().item()


@dataclass(frozen=True, eq=False)
class TaskVector:
    """The change that a task makes to the model, as a mapping from names to entries.

    In delta space, the names are layer names, and the entries are `LowRank`. In factor
    space, the names are parameter names, and the entries are tensors. A missing layer
    counts as zero. An entry that a rule cannot represent as low-rank is a tensor or
    `Deferred`.

    Examples
    --------
    >>> vector = TaskVector({"w": torch.tensor([3.0, 4.0])})
    >>> (vector * 2.0 - vector).norm()
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
        entries = dict(self.entries)
        for name, value in other.items():
            if name in entries:
                value = _plus(name, entries[name], value)
            entries[name] = value
        return TaskVector(entries)

    def __mul__(self, factor: float) -> TaskVector:
        entries = {name: value * factor for name, value in self.items()}
        return TaskVector(entries)

    __rmul__ = __mul__

    def __sub__(self, other: TaskVector) -> TaskVector:
        return self + other * -1.0

    def dense(self, name: str) -> Tensor:
        """Return the change of one layer or parameter as a full tensor."""
        return dense(self.entries[name])

    @functools.cached_property
    def digest(self) -> str | None:
        """The SHA-256 of all names and values, or None if an entry is deferred."""
        tensors: dict[str, Tensor] = {}
        for name, value in self.entries.items():
            if isinstance(value, Deferred):  # computing it may take longer than it saves
                return None
            if isinstance(value, LowRank):
                tensors[f"{name}.B"] = value.B
                tensors[f"{name}.A"] = value.A
            else:
                tensors[name] = value
        return digest_of(tensors)

    def made(self) -> TaskVector:
        """Return the vector with all deferred tensors computed, for use more than once."""
        entries: dict[str, Entry] = {}
        for name, value in self.items():
            if isinstance(value, Deferred):
                value = value.dense()
            entries[name] = value
        return TaskVector(entries)

    def inner(self, other: TaskVector) -> float:
        """Return the Frobenius inner product over all layers."""
        shared = [name for name in self.entries if name in other]
        # Since Python 3.12, `sum` compensates for rounding; a loop would change the last digits.
        return sum(inner(self[name], other[name]) for name in shared)

    def norm(self) -> float:
        """Return the Frobenius norm over all layers."""
        # Rounding can make the squared norm of a low-rank entry slightly negative if it is zero.
        squares = [max(0.0, _square(value)) for value in self.entries.values()]
        return sum(squares) ** 0.5

    def cosine(self, other: TaskVector) -> float:
        """Return the cosine of the angle between two task vectors, or 0 if one of them is zero.

        Examples
        --------
        >>> a = TaskVector({"w": torch.tensor([1.0, 0.0])})
        >>> b = TaskVector({"w": torch.tensor([1.0, 1.0])})
        >>> round(a.cosine(b), 4)
        0.7071
        """
        norms = self.norm() * other.norm()
        if norms == 0:
            return 0.0
        return self.inner(other) / norms

    def truncate(self, rank: int) -> TaskVector:
        """Return the closest vector whose low-rank entries have a rank of at most `rank`.

        Other entries are unchanged.
        """
        entries: dict[str, Entry] = {}
        for name, value in self.items():
            if isinstance(value, LowRank):
                value = value.truncate(rank)
            entries[name] = value
        return TaskVector(entries)


def _plus(name: str, left: Entry, right: Entry) -> Entry:
    if left.shape != right.shape:
        raise InputError(
            f"`{name}` has the shape {tuple(left.shape)} in one task vector, "
            f"{tuple(right.shape)} in another: the vectors belong to different models or spaces."
        )
    if isinstance(left, LowRank) and isinstance(right, LowRank):
        return left + right
    if isinstance(left, Tensor) and isinstance(right, Tensor):
        return left + right
    # The sum of two different kinds is a full tensor, so it is deferred until this layer is read.
    return Deferred(left.shape, lambda: dense(left) + dense(right))


def _square(value: Entry) -> float:
    """Return the inner product of an entry with itself, computing a deferred entry only once."""
    if isinstance(value, Deferred):
        value = value.dense()
    return inner(value, value)


def by_depth(names: Iterable[str], parts: int) -> dict[str, int]:
    """Divide the layers into `parts` parts of equal depth, and return the part of each layer.

    The depth of a layer is determined by the first number in its name. A layer without a
    number is in the first part.

    Examples
    --------
    >>> by_depth(["embed", "layer.0.q", "layer.1.q", "layer.2.q", "layer.3.q"], 2)
    {'embed': 0, 'layer.0.q': 0, 'layer.1.q': 0, 'layer.2.q': 1, 'layer.3.q': 1}
    """
    blocks = {name: _block(name) for name in names}
    numbers = {block for block in blocks.values() if block is not None}
    # Positions are used instead of the numbers, as an adapter may change only every other block.
    depths = {block: depth for depth, block in enumerate(sorted(numbers))}
    levels = max(1, len(depths))
    result = {}
    for name, block in blocks.items():
        depth = 0 if block is None else depths[block]
        result[name] = depth * parts // levels
    return result


def _block(name: str) -> int | None:
    """Return the first number in the name of a layer, or None."""
    for word in name.split("."):
        if word.isdigit():
            return int(word)
    return None


def total(vectors: Sequence[TaskVector]) -> TaskVector:
    """Return the sum of task vectors.

    The factors of a low-rank layer are concatenated once. Adding vector by vector would
    copy the growing factors each time.
    """
    by_name: dict[str, list[Entry]] = {}
    for vector in vectors:
        for name, value in vector.items():
            by_name.setdefault(name, []).append(value)
    entries = {name: _total(name, values) for name, values in by_name.items()}
    return TaskVector(entries)


def _total(name: str, values: list[Entry]) -> Entry:
    shape = values[0].shape
    low_rank = []
    for value in values:
        if isinstance(value, LowRank) and value.shape == shape:
            low_rank.append(value)
    if len(low_rank) == len(values) > 1:
        B = torch.cat([value.B for value in low_rank], dim=1)
        A = torch.cat([value.A for value in low_rank])
        return LowRank(B, A)
    # A single value, values of different kinds, or different shapes, which `_plus` rejects.
    plus = functools.partial(_plus, name)
    return functools.reduce(plus, values)


def shapes(vectors: Mapping[str, TaskVector]) -> dict[str, torch.Size]:
    """Return the shape of every layer that a task vector changes, in order of first appearance.

    Raises
    ------
    InputError
        Two vectors have different shapes for the same layer.
    """
    sizes: dict[str, torch.Size] = {}
    for task, vector in vectors.items():
        for name, value in vector.items():
            before = sizes.setdefault(name, value.shape)
            if before != value.shape:
                raise InputError(
                    f"`{name}` has the shape {tuple(value.shape)} in `{task}`, {tuple(before)} in "
                    "an earlier task: they belong to different models or spaces."
                )
    return sizes
