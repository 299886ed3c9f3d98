"""What the rules that work on singular vectors share: a matrix at a time, in its factors while that is exact."""

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
"""The change of one layer by the tasks that change it."""


def each_matrix(
    vectors: Mapping[str, TaskVector], merge: Callable[[str, Changes], Entry]
) -> TaskVector:
    """`merge(name, changes by task)` of each layer that is a matrix; of what is none the average, as in all papers.

    From factors the result is made at once, as factors; else when it is wanted, a layer at a time.
    """

    def entry(name: str, shape: torch.Size) -> Entry:
        changes = {task: vector[name] for task, vector in vectors.items() if name in vector}
        if len(shape) != 2:
            return summed(list(changes.values())) * (1 / len(vectors))
        if all(isinstance(change, LowRank) for change in changes.values()):
            return merge(name, changes)
        return Deferred(shape, lambda: dense(merge(name, changes)))

    return TaskVector({name: entry(name, shape) for name, shape in shapes(vectors).items()})


def summed(changes: Sequence[Entry]) -> Entry:
    """The sum of the changes of one layer."""
    return total([TaskVector({"": change}) for change in changes])[""]


def without(U: Float[Tensor, "out k"], change: Entry) -> Entry:
    """(I - U Uᵀ) change, in factors if the change is."""
    if isinstance(change, LowRank):
        return LowRank(change.B - U @ (U.T @ change.B), change.A)
    full = dense(change)
    return full - U @ (U.T @ full)


def times(change: Entry, right: Float[Tensor, "in in"]) -> Entry:
    """change · right, in the precision of `right` until it is done."""
    left = change.A if isinstance(change, LowRank) else dense(change)
    product = (left.to(right) @ right).to(left)
    return LowRank(change.B, product) if isinstance(change, LowRank) else product


def orthonormal(columns: Float[Tensor, "size k"]) -> Float[Tensor, "size k"]:
    """The nearest matrix with orthonormal columns (Procrustes): U Vᵀ of the singular value decomposition.

    If the columns depend on each other, only on what they span: the rest of the singular vectors is arbitrary.
    """
    if not columns.shape[1]:
        return columns
    U, _, Vh = svd(columns)
    return U @ Vh


def strongest(
    change: Entry, most: int, *, outside: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """The `most` greatest singular triples of a change, or of what is left of it outside of the span of some columns.

    As always at most the numerical rank. What is left is measured against the change: all of it may be rounding.
    """
    if outside is None:
        U, S, Vh = svd(change)
        return U[:, :most], S[:most], Vh[:most]
    U, S, Vh = strongest(without(outside, change), most)
    rank = int((1e-6 * max(0.0, inner(change, change)) ** 0.5 < S).sum())
    return U[:, :rank], S[:rank], Vh[:rank]


def joined(triples: Sequence[tuple[Tensor, Tensor, Tensor]]) -> tuple[Tensor, Tensor, Tensor]:
    """Singular triples of several matrices side by side, with the vectors of each side made orthonormal together."""
    Us, Ss, Vhs = zip(*triples, strict=True)
    return orthonormal(torch.cat(Us, 1)), torch.cat(Ss), orthonormal(torch.cat(Vhs).T).T


def coordinates(
    changes: Sequence[Entry],
) -> tuple[Float[Tensor, "out k"], list[Float[Tensor, "k in"]]]:
    """U and the S Vᵀ of each task of the decomposition of [ΔW_1 … ΔW_n], side by side: ΔW_t = U (S Vᵀ)_t.

    In factors, [ΔW_1 … ΔW_n] = [B_1 … B_n] diag(L_1, …, L_n) diag(Q_1, …, Q_n) with A_t = L_t Q_t.
    """
    if all(isinstance(change, LowRank) for change in changes):
        factors = [torch.linalg.qr(change.A.T) for change in changes if isinstance(change, LowRank)]
        right, widths = [Q.T for Q, _ in factors], [len(R) for _, R in factors]
        columns = torch.cat([change.B for change in changes if isinstance(change, LowRank)], 1)
        U, S, Vh = svd(LowRank(columns, torch.block_diag(*[R.T for _, R in factors])))
    else:
        full = [dense(change) for change in changes]
        right, widths = [None] * len(full), [change.shape[1] for change in full]
        U, S, Vh = svd(torch.cat(full, 1))
    parts = (S[:, None] * Vh).split(widths, 1)
    return U, [part if Q is None else part @ Q for part, Q in zip(parts, right, strict=True)]


def aligned(vectors: Mapping[str, TaskVector]) -> tuple[dict[str, Tensor], dict[str, TaskVector]]:
    """The common basis U of each matrix, and each task's coordinates in it; what is no matrix as it is."""
    bases: dict[str, Tensor] = {}
    parts: dict[str, dict[str, Entry]] = {task: {} for task in vectors}
    for name, shape in shapes(vectors).items():
        changes = {task: vector[name] for task, vector in vectors.items() if name in vector}
        if len(shape) == 2:
            bases[name], columns = coordinates(list(changes.values()))
            changes = dict(zip(changes, columns, strict=True))
        for task, change in changes.items():
            parts[task][name] = change
    return bases, {task: TaskVector(entries) for task, entries in parts.items()}


def added(merged: Entry, factor: float, new: Entry, *, alpha: float, block: Block) -> Entry:
    """factor · merged + what is left of `new` outside of the directions of `merged`: one step of OPCM for a matrix.

    With merged = U diag(S) Vᵀ and P = Uᵀ new V, P's diagonal is removed from `new`, and its first r rows and columns:
    where both meet (`topleft`), or all of them (`both`). The first r values are at most the share alpha of the sum of
    S. U and V are those of the numerical rank: what more there were would be arbitrary. In factors the rank grows by
    that of `new`.
    """
    U, S, Vh = svd(merged)
    r = int((S.double().cumsum(0) / S.double().sum() <= alpha).sum())
    core = U.T @ (new.B @ (new.A @ Vh.T) if isinstance(new, LowRank) else dense(new) @ Vh.T)
    removed = torch.eye(len(S), dtype=torch.bool, device=S.device)
    if block == "topleft":
        removed[:r, :r] = True
    else:
        new = _transposed(without(Vh[:r].T, _transposed(without(U[:, :r], new))))
        removed[:r] = False
    middle = factor * S.diag() - torch.where(removed, core, 0.0)
    if isinstance(merged, LowRank) and isinstance(new, LowRank):
        return LowRank(torch.cat([U @ middle, new.B], 1), torch.cat([Vh, new.A]))
    return factor * dense(merged) + dense(new) + U @ (middle - factor * S.diag()) @ Vh


def _transposed(change: Entry) -> Entry:
    return LowRank(change.A.T, change.B.T) if isinstance(change, LowRank) else dense(change).T
