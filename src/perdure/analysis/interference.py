"""Interference between task vectors: norms, cosines, shared subspaces and sign conflicts.

Low-rank layers are compared by their factors wherever that is exact. A layer that a task
vector lacks counts as zero. A value that is undefined because a vector is zero is nan.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from perdure.analysis.shared import MANY, LeftOut, plain, vectors_of
from perdure.analysis.subject import Subject
from perdure.vectors.task_vector import Entry, LowRank, TaskVector, dense, shapes, svd

Vectors = Mapping[str, TaskVector]
BLOCK = 2**22  # the number of entries, over all tasks, that are in memory at the same time


@dataclass(frozen=True)
class Pairwise:
    """A measure of every pair of tasks, over all layers together and for each layer."""

    overall: Float[Tensor, "tasks tasks"]
    layers: dict[str, Float[Tensor, "tasks tasks"]]


def norms(vectors: Vectors) -> dict[str, Float[Tensor, " tasks"]]:
    """Return the Frobenius norm of each task's ΔW in each layer.

    The squared norm over all layers is the sum of the squares.

    Examples
    --------
    >>> norms({"a": TaskVector({"w": torch.tensor([3.0, 4.0])}), "b": TaskVector({})})["w"].tolist()
    [5.0, 0.0]
    """
    by_layer = {}
    for name, entries in _by_layer(vectors):
        # The squared norm of low-rank factors can be slightly negative because of rounding.
        squares = _gram(entries).diagonal().clamp_min(0)
        by_layer[name] = squares.sqrt()
    return by_layer


def cosines(vectors: Vectors) -> Pairwise:
    """Return the cosine of each pair of tasks, <ΔW_a, ΔW_b> / (‖ΔW_a‖ ‖ΔW_b‖).

    Raises
    ------
    InputError
        A layer has different shapes in different tasks.

    Examples
    --------
    >>> a = TaskVector({"w": torch.tensor([1.0, 0.0])})
    >>> b = TaskVector({"w": torch.tensor([0.0, 2.0])})
    >>> cosines({"a": a, "b": b}).overall.tolist()
    [[1.0, 0.0], [0.0, 1.0]]
    """
    grams = {}
    for name, entries in _by_layer(vectors):
        grams[name] = _gram(entries)
    by_layer = {}
    for name, gram in grams.items():
        by_layer[name] = _normed(gram)
    # Inner products can be summed over the layers, cosines cannot.
    total = _total(grams, len(vectors))
    return Pairwise(_normed(total), by_layer)


def sign_conflicts(vectors: Vectors, *, weighted: bool = False) -> Pairwise:
    """Return the share of weights that two tasks change in opposite directions.

    The share is among the weights that both tasks change; 1/2 is expected by chance. If
    `weighted`, each weight counts with |a b|, where a and b are its two changes, so the
    share is (1 - <a, b> / <|a|, |b|>) / 2. TIES-Merging (Yadav et al. 2023, arXiv
    2306.01708) studies the cost of resolving such conflicts by a vote.

    Examples
    --------
    >>> a = TaskVector({"w": torch.tensor([1.0, 3.0, 0.0])})
    >>> b = TaskVector({"w": torch.tensor([1.0, -1.0, 5.0])})
    >>> sign_conflicts({"a": a, "b": b}).overall[0, 1].item()
    0.5
    >>> sign_conflicts({"a": a, "b": b}, weighted=True).overall[0, 1].item()
    0.75
    """
    count = len(vectors)
    # The inner products of the changes (or of their signs), and of their absolute values.
    signed = {}
    absolute = {}
    for name, entries in _by_layer(vectors):
        inner = torch.zeros(count, count, dtype=torch.double)
        inner_absolute = torch.zeros_like(inner)
        for block in _blocks(entries):
            values = block if weighted else block.sign()
            sizes = values.abs()
            inner += values @ values.T
            inner_absolute += sizes @ sizes.T
        signed[name] = inner
        absolute[name] = inner_absolute
    by_layer = {}
    for name, inner in signed.items():
        by_layer[name] = _opposed(inner, absolute[name])
    overall = _opposed(
        _total(signed, count),
        _total(absolute, count),
    )
    return Pairwise(overall, by_layer)


def _opposed(signed: Tensor, absolute: Tensor) -> Float[Tensor, "tasks tasks"]:
    """Return the share of opposite signs: 0 if all signs agree, 1 if all are opposite."""
    agreement = signed / absolute
    share = (1 - agreement) / 2
    return share.clamp(0, 1)  # rounding must not lead out of this range


def overlaps(vectors: Vectors, *, rank: int = 8) -> tuple[Pairwise, Pairwise]:
    """Return the overlaps of the leading left, and of the leading right, singular subspaces of ΔW.

    The overlap of two tasks is the mean squared cosine of the principal angles: ‖U_aᵀ
    U_b‖² / k for the first k left singular vectors (what a layer writes), and the same
    for the right ones (what it reads). k is `rank`, or the smaller rank of the two ΔW if
    that is less. Orthogonal subspaces have an overlap of 0 and equal ones of 1; two
    random subspaces in d dimensions have an expected overlap of k / d. The overall value
    is the mean over the layers that both tasks change. Entries that are not matrices are
    left out.

    Examples
    --------
    >>> a = LowRank(torch.eye(4)[:, :1], torch.ones(1, 3))
    >>> b = LowRank(torch.eye(4)[:, 1:2], torch.ones(1, 3))
    >>> left, right = overlaps({"a": TaskVector({"w": a}), "b": TaskVector({"w": b})})
    >>> round(left.overall[0, 1].item(), 4), round(right.overall[0, 1].item(), 4)
    (0.0, 1.0)
    """
    left = {}
    right = {}
    for name, entries in _by_layer(vectors):
        # Biases and norms have no subspaces.
        if len(entries[0].shape) != 2:
            continue
        written = []
        read = []
        for entry in entries:
            U, _, Vh = svd(entry)
            written.append(U[:, :rank].double())
            read.append(Vh[:rank].T.double())
        left[name] = _common(written)
        right[name] = _common(read)
    count = len(vectors)
    return _averaged(left, count), _averaged(right, count)


def _averaged(layers: dict[str, Tensor], tasks: int) -> Pairwise:
    """Return the values of the layers, with their mean over the layers where they are defined."""
    # `stack` needs at least one tensor, and `nanmean` ignores this one.
    undefined = torch.full((tasks, tasks), torch.nan, dtype=torch.double)
    overall = torch.stack([undefined, *layers.values()]).nanmean(0)
    return Pairwise(overall, layers)


def _common(bases: Sequence[Float[Tensor, "d _"]]) -> Float[Tensor, "tasks tasks"]:
    """Return the mean squared cosine of the principal angles for each pair of orthonormal bases."""
    rows = []
    for a in bases:
        rows.append([_overlap(a, b) for b in bases])
    return torch.tensor(rows, dtype=torch.double)


def _overlap(a: Float[Tensor, "d _"], b: Float[Tensor, "d _"]) -> float:
    k = min(a.shape[1], b.shape[1])
    # A zero ΔW has no subspace at all: the overlap is undefined, and not 0.
    if k == 0:
        return torch.nan
    cosines = a[:, :k].T @ b[:, :k]
    return cosines.square().sum().item() / k


def _by_layer(vectors: Vectors) -> Iterator[tuple[str, list[Entry]]]:
    """Yield the name of each layer with its entry in each task vector; missing ones are zero."""
    for name, shape in shapes(vectors).items():
        zero = _zero(shape)
        yield name, [vector.entries.get(name, zero) for vector in vectors.values()]


def _zero(shape: torch.Size) -> Entry:
    """Return a zero entry of the given shape; for a matrix, one of rank 0, to save memory."""
    if len(shape) != 2:
        return torch.zeros(shape)
    rows, columns = shape
    return LowRank(torch.zeros(rows, 0), torch.zeros(0, columns))


def _gram(entries: Sequence[Entry]) -> Float[Tensor, "tasks tasks"]:
    """Return the inner products of all pairs of entries, in double precision.

    Low-rank entries are not expanded to full matrices: <B_a A_a, B_b A_b> is the sum of
    all elements of the elementwise product (B_aᵀ B_b) * (A_a A_bᵀ).
    """
    low_rank = [entry for entry in entries if isinstance(entry, LowRank)]
    count = len(entries)
    if len(low_rank) < count:
        gram = torch.zeros(count, count, dtype=torch.double)
        for block in _blocks(entries):
            gram += block @ block.T
        return gram
    # The factors of all tasks are concatenated, multiplied in one go, and the products
    # are summed over the block of each pair of tasks. `member` marks the task of each
    # column of B (row of A).
    left = [entry.B.double() for entry in low_rank]
    right = [entry.A.double() for entry in low_rank]
    B = torch.cat(left, dim=1)
    A = torch.cat(right)
    ranks = torch.tensor([entry.rank for entry in low_rank])
    owner = torch.repeat_interleave(ranks)
    member = torch.nn.functional.one_hot(owner, count).double()
    products = (B.T @ B) * (A @ A.T)
    return member.T @ products @ member


def _blocks(entries: Sequence[Entry]) -> Iterator[Float[Tensor, "tasks block"]]:
    """Yield the values of a layer in all tasks, a few rows at a time, to save memory."""
    # Deferred tensors are computed once here, and low-rank ones a few rows at a time below.
    stored = [entry if isinstance(entry, LowRank) else dense(entry) for entry in entries]
    shape = entries[0].shape
    length = shape[0]
    size = len(entries) * shape.numel()
    # A single row may be larger than a block, and a layer may be empty.
    height = max(1, BLOCK * length // max(1, size))
    for start in range(0, length, height):
        rows = slice(start, start + height)
        values = []
        for entry in stored:
            block = entry.B[rows] @ entry.A if isinstance(entry, LowRank) else entry[rows]
            values.append(block.reshape(-1))
        yield torch.stack(values).double()


def _normed(gram: Float[Tensor, "tasks tasks"]) -> Float[Tensor, "tasks tasks"]:
    """Divide inner products by the norms, whose squares are on the diagonal; 0 / 0 is nan."""
    squares = gram.diagonal().clamp_min(0)
    size = squares.sqrt()
    products = size[:, None] * size
    cosines = gram / products
    return cosines.clamp(-1, 1)


def _total(grams: Mapping[str, Tensor], tasks: int) -> Float[Tensor, "tasks tasks"]:
    zero = torch.zeros(tasks, tasks, dtype=torch.double)
    return sum(grams.values(), zero)


def compute(subject: Subject) -> dict[str, object]:
    """Return the norms, cosines, overlaps and sign conflicts of a run's task vectors."""
    vectors, linear = vectors_of(subject)
    count = len(vectors)
    if count < 2:
        raise LeftOut("There is only one task, so there is nothing to compare.")
    matrices = {}
    for task, vector in vectors.items():
        entries = {name: vector[name] for name in linear if name in vector}
        matrices[task] = TaskVector(entries)
    left, right = overlaps(matrices)
    measures = {
        "cosine": cosines(vectors),
        "overlap_left": left,
        "overlap_right": right,
        "sign_conflict": sign_conflicts(vectors),
        "weighted_sign_conflict": sign_conflicts(vectors, weighted=True),
    }
    by_layer = norms(vectors)
    squares = sum(norm.square() for norm in by_layer.values())
    layers = linear if count <= MANY else []
    # The values of a layer are stored once per pair of tasks: the matrices are symmetric.
    upper = torch.triu_indices(count, count, 1)
    numbers: dict[str, object] = {
        "layers": layers,
        "norms": plain(squares**0.5),
        "layer_norms": [plain(by_layer[name]) for name in layers],
    }
    for key, measure in measures.items():
        numbers[key] = plain(measure.overall)
    for key, measure in measures.items():
        values = []
        for name in layers:
            pairs = measure.layers[name][*upper]
            values.append(plain(pairs))
        numbers[f"layer_{key}"] = values
    return numbers
