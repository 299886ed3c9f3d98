"""Tools for rules that work on singular vectors, using low-rank factors where that is exact.

U, S and Vh (Vᵀ) denote a singular value decomposition U diag(S) Vᵀ throughout.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from perdure.vectors.task_vector import (
    Deferred,
    Entry,
    LowRank,
    TaskVector,
    dense,
    inner,
    shapes,
    svd,
    total,
)

Block = Literal["topleft", "both"]
Changes = dict[str, Entry]
"""The changes to one layer, by task, without the tasks that do not change it."""
Triples = tuple[Tensor, Tensor, Tensor]
"""Singular triples: the columns of U, the values S, the rows of Vᵀ."""


def each_matrix(
    vectors: Mapping[str, TaskVector], merge: Callable[[str, Changes], Entry]
) -> TaskVector:
    """Apply `merge(name, changes)` to each matrix and average all other layers, as papers do.

    `changes` maps tasks to their changes to the layer. If all of them are low-rank, the
    layer is merged immediately, in factors. Otherwise, it is merged when it is read.
    """

    def entry(name: str, shape: torch.Size) -> Entry:
        changes = _changes(vectors, name)
        if len(shape) != 2:
            # Divide by the number of all tasks: a task that lacks the layer adds zero.
            average = 1 / len(vectors)
            layer_sum = summed(list(changes.values()))
            return layer_sum * average
        # Merge small factors now, and full matrices later, one layer at a time.
        in_factors = all(isinstance(change, LowRank) for change in changes.values())
        if in_factors:
            return merge(name, changes)
        return Deferred(shape, lambda: dense(merge(name, changes)))

    entries: dict[str, Entry] = {}
    for name, shape in shapes(vectors).items():
        entries[name] = entry(name, shape)
    return TaskVector(entries)


def _changes(vectors: Mapping[str, TaskVector], name: str) -> Changes:
    changes: Changes = {}
    for task, vector in vectors.items():
        if name in vector:
            changes[task] = vector[name]
    return changes


def summed(changes: Sequence[Entry]) -> Entry:
    """Return the sum of several changes to one layer."""
    # `total` sums task vectors, joining low-rank factors once, so the layer needs a name.
    vectors = [TaskVector({"": change}) for change in changes]
    return total(vectors)[""]


def without(U: Float[Tensor, "out k"], change: Entry) -> Entry:
    """Return (I - U Uᵀ) · change, as low-rank factors if `change` is low-rank."""
    if isinstance(change, LowRank):
        # (I - U Uᵀ) B A: the projection touches only B, and the rank does not grow.
        inside = U @ (U.T @ change.B)
        return LowRank(change.B - inside, change.A)
    full = dense(change)
    inside = U @ (U.T @ full)
    return full - inside


def times(change: Entry, right: Float[Tensor, "in in"]) -> Entry:
    """Return change · right, computed in the precision of `right` and rounded once."""
    if isinstance(change, LowRank):
        A = _times(change.A, right)
        return LowRank(change.B, A)
    return _times(dense(change), right)


def _times(left: Tensor, right: Tensor) -> Tensor:
    wide = left.to(right)
    product = wide @ right
    return product.to(left)


def orthonormal(columns: Float[Tensor, "size k"]) -> Float[Tensor, "size k"]:
    """Return the closest matrix with orthonormal columns (Procrustes), which is U Vᵀ of the SVD.

    If the columns are linearly dependent, only singular vectors in their span are used,
    because the others would be arbitrary.
    """
    if columns.shape[1] == 0:
        return columns
    U, _, Vh = svd(columns)
    return U @ Vh


def strongest(change: Entry, most: int, *, outside: Tensor | None = None) -> Triples:
    """Return the `most` largest singular triples of a change, or fewer if its rank is lower.

    If `outside` is given, decompose only the part orthogonal to the columns of `outside`.
    """
    if outside is None:
        return _first(most, svd(change))
    remainder = without(outside, change)
    U, S, Vh = _first(most, svd(remainder))
    # Compare with the change itself: if it is in the span, only rounding error remains.
    square = max(0.0, inner(change, change))
    significant = 1e-6 * square**0.5 < S
    rank = int(significant.sum())
    return _first(rank, (U, S, Vh))


def _first(count: int, triples: Triples) -> Triples:
    U, S, Vh = triples
    return (
        U[:, :count],
        S[:count],
        Vh[:count],
    )


def joined(triples: Sequence[Triples]) -> Triples:
    """Concatenate singular triples and make the left and right singular vectors orthonormal."""
    Us, Ss, Vhs = zip(*triples, strict=True)
    # The singular values are kept, although the vectors change slightly.
    U = orthonormal(torch.cat(Us, 1))
    V = orthonormal(torch.cat(Vhs).T)
    S = torch.cat(Ss)
    return U, S, V.T


def coordinates(
    changes: Sequence[Entry],
) -> tuple[Float[Tensor, "out k"], list[Float[Tensor, "k in"]]]:
    """Decompose [ΔW_1 … ΔW_n]; return U and the blocks (S Vᵀ)_t, where ΔW_t = U (S Vᵀ)_t."""
    in_factors = [change for change in changes if isinstance(change, LowRank)]
    if len(in_factors) == len(changes):
        return _coordinates_of_factors(in_factors)
    full = [dense(change) for change in changes]
    side_by_side = torch.cat(full, 1)
    U, S, Vh = svd(side_by_side)
    weighted = S[:, None] * Vh
    widths = [change.shape[1] for change in full]
    return U, list(weighted.split(widths, 1))


def _coordinates_of_factors(
    changes: Sequence[LowRank],
) -> tuple[Float[Tensor, "out k"], list[Float[Tensor, "k in"]]]:
    # With A_t = L_t Q_t, where the rows of Q_t are orthonormal,
    # [ΔW_1 … ΔW_n] = [B_1 … B_n] diag(L_1, …, L_n) diag(Q_1, …, Q_n).
    # The last factor changes no singular value, so the SVD of the small product suffices.
    L: list[Tensor] = []
    Q: list[Tensor] = []
    for change in changes:
        columns, upper = torch.linalg.qr(change.A.T)
        Q.append(columns.T)
        L.append(upper.T)
    B = torch.cat([change.B for change in changes], 1)
    product = LowRank(B, torch.block_diag(*L))
    U, S, Vh = svd(product)
    weighted = S[:, None] * Vh
    widths = [len(rows) for rows in Q]
    in_basis: list[Tensor] = []
    for block, rows in zip(weighted.split(widths, 1), Q, strict=True):
        in_basis.append(block @ rows)
    return U, in_basis


def aligned(
    vectors: Mapping[str, TaskVector],
) -> tuple[dict[str, Tensor], dict[str, TaskVector]]:
    """Return a common basis U for each matrix and the coordinates of each task in these bases.

    Layers that are not matrices have no basis, and their changes are returned unchanged.
    """
    bases: dict[str, Tensor] = {}
    entries: dict[str, dict[str, Entry]] = {}
    for task in vectors:
        entries[task] = {}  # even for a task without layers
    for name, shape in shapes(vectors).items():
        changes = _changes(vectors, name)
        if len(shape) == 2:
            U, in_basis = coordinates(list(changes.values()))
            bases[name] = U
            # `coordinates` keeps the order of the tasks.
            changes = dict(zip(changes, in_basis, strict=True))
        for task, change in changes.items():
            entries[task][name] = change
    aligned_vectors: dict[str, TaskVector] = {}
    for task, task_entries in entries.items():
        aligned_vectors[task] = TaskVector(task_entries)
    return bases, aligned_vectors


def added(
    merged: Entry,
    factor: float,
    new: Entry,
    *,
    alpha: float,
    block: Block,
) -> Entry:
    """Return factor · merged plus the part of `new` outside the directions of `merged`.

    This is one step of OPCM for one matrix. With merged = U diag(S) Vᵀ and P = Uᵀ new V,
    it removes the diagonal of P from `new`, and also either the top-left r × r block
    (`topleft`) or the first r rows and columns (`both`). The first r singular values make
    up at most a fraction alpha of the sum of S. U and V are cut off at the numerical
    rank, because further singular vectors would be arbitrary. If both changes are
    low-rank, the result is low-rank, too, and its rank is the sum of their ranks.
    """
    U, S, Vh = svd(merged)
    values = S.double()  # so that rounding does not decide the comparison with alpha
    shares = values.cumsum(0) / values.sum()
    r = int((shares <= alpha).sum())
    P = _core(U, new, Vh)
    # The entries of P to remove: the diagonal, and the block of the first r directions.
    removed = torch.eye(
        len(S),
        dtype=torch.bool,
        device=S.device,
    )
    if block == "topleft":
        removed[:r, :r] = True
    else:
        V = Vh.T
        new = without(U[:, :r], new)
        # From the right, new (I - V Vᵀ), as the transpose of a projection from the left.
        first = V[:, :r]
        transposed = without(first, _transposed(new))
        new = _transposed(transposed)
        # The projection has also removed the first r diagonal entries.
        removed[:r] = False
    scaled = factor * S.diag()
    middle = scaled - torch.where(removed, P, 0.0)
    if isinstance(merged, LowRank) and isinstance(new, LowRank):
        # U middle Vᵀ + B A, side by side.
        columns = [U @ middle, new.B]
        rows = [Vh, new.A]
        return LowRank(
            torch.cat(columns, 1),
            torch.cat(rows),
        )
    # Add `merged` itself, not its decomposition, to keep what the SVD would round away.
    both = factor * dense(merged) + dense(new)
    correction = middle - scaled
    return both + U @ correction @ Vh


def _core(U: Tensor, change: Entry, Vh: Tensor) -> Tensor:
    """Return Uᵀ · change · V without forming a full matrix if the change is low-rank."""
    V = Vh.T
    if isinstance(change, LowRank):
        thin = change.B @ (change.A @ V)
        return U.T @ thin
    thin = dense(change) @ V
    return U.T @ thin


def _transposed(change: Entry) -> Entry:
    if isinstance(change, LowRank):
        return LowRank(change.A.T, change.B.T)
    return dense(change).T
