"""How much task vectors are in each other's way: norms, cosines, common subspaces and conflicts of sign.

The entries of a layer are compared as they are: low-rank ones by their factors, where that is exact. A layer that a
task vector lacks is zero there. Where something is not defined (a vector is zero) there is nan.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from perdure.analysis.shared import MANY, LeftOut, plain, vectors_of
from perdure.analysis.subject import Subject
from perdure.vectors.task_vector import Entry, LowRank, TaskVector, dense, shapes, svd

Vectors = Mapping[str, TaskVector]
BLOCK = 2**22  # entries of all tasks that are made at a time


@dataclass(frozen=True)
class Pairwise:
    """A value for every pair of tasks: over all layers, and by layer."""

    overall: Float[Tensor, "tasks tasks"]
    layers: dict[str, Float[Tensor, "tasks tasks"]]


def norms(vectors: Vectors) -> dict[str, Float[Tensor, " tasks"]]:
    """The Frobenius norm of each task's ΔW, by layer; over all layers the squares add up.

    Examples
    --------
    >>> norms({"a": TaskVector({"w": torch.tensor([3.0, 4.0])}), "b": TaskVector({})})["w"].tolist()
    [5.0, 0.0]
    """
    return {
        name: _gram(entries).diagonal().clamp_min(0).sqrt() for name, entries in _by_layer(vectors)
    }


def cosines(vectors: Vectors) -> Pairwise:
    """The cosine of the angle between two tasks' ΔW, <ΔW_a, ΔW_b> / (‖ΔW_a‖ ‖ΔW_b‖).

    Raises
    ------
    InputError
        A layer has not one shape.

    Examples
    --------
    >>> a, b = TaskVector({"w": torch.tensor([1.0, 0.0])}), TaskVector({"w": torch.tensor([0.0, 2.0])})
    >>> cosines({"a": a, "b": b}).overall.tolist()
    [[1.0, 0.0], [0.0, 1.0]]
    """
    grams = {name: _gram(entries) for name, entries in _by_layer(vectors)}
    return Pairwise(
        _normed(_total(grams, len(vectors))), {name: _normed(gram) for name, gram in grams.items()}
    )


def sign_conflicts(vectors: Vectors, *, weighted: bool = False) -> Pairwise:
    """The share of weights that two tasks change in opposite directions, among those that both change.

    1/2 is chance. With `weighted` each weight counts with |a b|, a and b being its two changes: then it is the share
    of their inner product of absolute values that the signs take away, (1 - <a, b> / <|a|, |b|>) / 2. What it costs to
    resolve such conflicts by a vote is the subject of TIES-Merging (Yadav et al. 2023, arXiv 2306.01708).

    Examples
    --------
    >>> a, b = TaskVector({"w": torch.tensor([1.0, 3.0, 0.0])}), TaskVector({"w": torch.tensor([1.0, -1.0, 5.0])})
    >>> sign_conflicts({"a": a, "b": b}).overall[0, 1].item()
    0.5
    >>> sign_conflicts({"a": a, "b": b}, weighted=True).overall[0, 1].item()
    0.75
    """
    with_sign, without = {}, {}
    for name, entries in _by_layer(vectors):
        with_sign[name] = torch.zeros(len(vectors), len(vectors), dtype=torch.double)
        without[name] = with_sign[name].clone()
        for block in _blocks(entries):
            values = block if weighted else block.sign()
            with_sign[name] += values @ values.T
            without[name] += values.abs() @ values.abs().T
    rates = {name: _opposed(gram, without[name]) for name, gram in with_sign.items()}
    return Pairwise(_opposed(_total(with_sign, len(vectors)), _total(without, len(vectors))), rates)


def _opposed(with_sign: Tensor, without: Tensor) -> Float[Tensor, "tasks tasks"]:
    return ((1 - with_sign / without) / 2).clamp(0, 1)


def overlaps(vectors: Vectors, *, rank: int = 8) -> tuple[Pairwise, Pairwise]:
    """How far the leading singular subspaces of two tasks' ΔW are the same: the mean squared cosine of their angles.

    ‖Uᵀ_a U_b‖² / k for the first k left singular vectors (what a layer writes), and the same for those on the right
    (what it reads); k is `rank`, or less where ΔW has no more. 0: orthogonal, 1: equal; of two random subspaces in d
    dimensions k / d is expected. Over all layers: the mean of those where both tasks have a ΔW. Entries that are no
    matrices are left out.

    Examples
    --------
    >>> a, b = LowRank(torch.eye(4)[:, :1], torch.ones(1, 3)), LowRank(torch.eye(4)[:, 1:2], torch.ones(1, 3))
    >>> left, right = overlaps({"a": TaskVector({"w": a}), "b": TaskVector({"w": b})})
    >>> round(left.overall[0, 1].item(), 4), round(right.overall[0, 1].item(), 4)
    (0.0, 1.0)
    """
    left, right = {}, {}
    for name, entries in _by_layer(vectors):
        if len(entries[0].shape) == 2:
            parts = [svd(entry) for entry in entries]
            left[name] = _common([U[:, :rank].double() for U, _, _ in parts])
            right[name] = _common([Vh[:rank].T.double() for _, _, Vh in parts])
    return _averaged(left, len(vectors)), _averaged(right, len(vectors))


def _averaged(layers: dict[str, Tensor], tasks: int) -> Pairwise:
    """Over all layers: the mean of those that are defined."""
    none = torch.full((tasks, tasks), torch.nan, dtype=torch.double)
    return Pairwise(torch.stack([none, *layers.values()]).nanmean(0), layers)


def _common(bases: Sequence[Float[Tensor, "d _"]]) -> Float[Tensor, "tasks tasks"]:
    """The mean squared cosine of the principal angles between each two subspaces, given orthonormal bases."""

    def common(a: Tensor, b: Tensor) -> float:
        k = min(a.shape[1], b.shape[1])
        return (a[:, :k].T @ b[:, :k]).square().sum().item() / k if k else torch.nan

    return torch.tensor([[common(a, b) for b in bases] for a in bases], dtype=torch.double)


def _by_layer(vectors: Vectors) -> Iterator[tuple[str, list[Entry]]]:
    """The entries of all tasks, layer by layer."""
    for name, shape in shapes(vectors).items():
        zero = (
            LowRank(torch.zeros(shape[0], 0), torch.zeros(0, shape[1]))
            if len(shape) == 2
            else torch.zeros(shape)
        )
        yield name, [vector.entries.get(name, zero) for vector in vectors.values()]


def _gram(entries: Sequence[Entry]) -> Float[Tensor, "tasks tasks"]:
    """The inner products of all pairs, in double precision; of low-rank entries without any full matrix."""
    low = [entry for entry in entries if isinstance(entry, LowRank)]
    if len(low) < len(entries):
        return sum(
            (block @ block.T for block in _blocks(entries)), torch.zeros(len(entries), len(entries))
        )
    B = torch.cat([entry.B.double() for entry in low], dim=1)
    A = torch.cat([entry.A.double() for entry in low])
    owner = torch.repeat_interleave(torch.tensor([entry.rank for entry in low]))
    member = torch.nn.functional.one_hot(owner, len(low)).double()
    return member.T @ ((B.T @ B) * (A @ A.T)) @ member


def _blocks(entries: Sequence[Entry]) -> Iterator[Float[Tensor, "tasks block"]]:
    """All values of a layer, some rows at a time, so that never all full matrices are in memory."""
    whole = [entry if isinstance(entry, LowRank) else dense(entry) for entry in entries]
    shape = entries[0].shape
    rows = max(1, BLOCK * shape[0] // max(1, len(entries) * shape.numel()))
    for start in range(0, shape[0], rows):
        part = slice(start, start + rows)
        values = [
            (e.B[part] @ e.A if isinstance(e, LowRank) else e[part]).reshape(-1) for e in whole
        ]
        yield torch.stack(values).double()


def _normed(gram: Float[Tensor, "tasks tasks"]) -> Float[Tensor, "tasks tasks"]:
    size = gram.diagonal().clamp_min(0).sqrt()
    return (gram / (size[:, None] * size)).clamp(-1, 1)


def _total(grams: Mapping[str, Tensor], tasks: int) -> Float[Tensor, "tasks tasks"]:
    return sum(grams.values(), torch.zeros(tasks, tasks, dtype=torch.double))


def compute(subject: Subject) -> dict[str, Any]:
    """Return the numbers of this diagnostic for a run."""
    vectors, linear = vectors_of(subject)
    if len(vectors) < 2:
        raise LeftOut("There is one task only, and nothing to compare it with.")
    matrices = {t: TaskVector({n: v[n] for n in linear if n in v}) for t, v in vectors.items()}
    left, right = overlaps(matrices)
    pairs = {
        "cosine": cosines(vectors),
        "overlap_left": left,
        "overlap_right": right,
        "sign_conflict": sign_conflicts(vectors),
        "weighted_sign_conflict": sign_conflicts(vectors, weighted=True),
    }
    layers = linear if len(vectors) <= MANY else []
    by_layer = norms(vectors)
    upper = torch.triu_indices(len(vectors), len(vectors), 1)
    return {
        "layers": layers,
        "norms": plain(sum(norm.square() for norm in by_layer.values()) ** 0.5),
        "layer_norms": [plain(by_layer[name]) for name in layers],
        **{name: plain(value.overall) for name, value in pairs.items()},
        **{
            f"layer_{name}": [plain(v.layers[n][*upper]) for n in layers]
            for name, v in pairs.items()
        },
    }
