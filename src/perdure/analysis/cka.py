"""How alike two sets of features of the same examples are: linear CKA from unbiased estimates of HSIC."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from perdure.analysis.shared import LeftOut, plain
from perdure.analysis.subject import Subject
from perdure.errors import InputError

BATCH = 256


class UnbiasedCKA:
    """CKA of every pair of two models' layers, summed up over mini-batches of the same examples.

    With K = X Xᵀ and L = Y Yᵀ, their diagonals set to 0, and n examples in a batch:

        HSIC₁(K, L) = [tr(K L) + ΣK ΣL / ((n-1)(n-2)) - 2 · 1ᵀ K L 1 / (n-2)] / (n (n-3))
        CKA = Σ_b HSIC₁(K, L) / sqrt(Σ_b HSIC₁(K, K) · Σ_b HSIC₁(L, L))

    HSIC₁ is unbiased (Song et al. 2012), so batches may be small and features wide (Nguyen et al. 2021, arXiv
    2010.15327; used on continual learners by Kim & Han 2023, arXiv 2304.01663). 1: the same but for rotation and scale;
    near 0, on either side: independent.

    It is computed as the inner product of K and L after each was centred so that its rows add up to 0 without the
    diagonal (Székely & Rizzo 2014), which is the same number.

    Examples
    --------
    >>> X = torch.randn(8, 3, generator=torch.Generator().manual_seed(0))
    >>> same = UnbiasedCKA()
    >>> same.add([X], [X, 2 * X.flip(1)])
    >>> same.matrix().round(decimals=4).tolist()
    [[1.0, 1.0]]
    """

    def __init__(self):
        self._both: Tensor | float = 0.0
        self._left: Tensor | float = 0.0
        self._right: Tensor | float = 0.0

    def add(
        self, left: Sequence[Float[Tensor, "_ _"]], right: Sequence[Float[Tensor, "_ _"]]
    ) -> None:
        """Count a batch: the features of its examples at each layer of the two models.

        Raises
        ------
        InputError
            It has fewer than four examples, or the two have different numbers of them.
        """
        sizes = {len(x) for x in (*left, *right)}
        if len(sizes) != 1 or min(sizes) < 4:
            raise InputError(
                f"CKA needs batches of the same four examples or more, got {sorted(sizes)}."
            )
        n = sizes.pop()
        K, L = (torch.stack([_centred(x).flatten() for x in part]) for part in (left, right))
        scale = n * (n - 3)
        self._both = self._both + K @ L.T / scale
        self._left = self._left + K.square().sum(1) / scale
        self._right = self._right + L.square().sum(1) / scale

    def matrix(self) -> Float[Tensor, "left right"]:
        """CKA of each layer of the one with each layer of the other; nan where features do not vary."""
        if isinstance(self._both, float):
            raise InputError("CKA needs at least one batch: call `add` first.")
        return (
            self._both
            / torch.outer(torch.as_tensor(self._left), torch.as_tensor(self._right)).sqrt()
        )


def cka(
    left: Float[Tensor, "n a"], right: Float[Tensor, "m b"], *, batch: int = BATCH, seed: int = 0
) -> float:
    """CKA of two sets of features of the same examples, over mini-batches that are drawn with `seed`.

    Raises
    ------
    InputError
        There are fewer than four examples, or not the same number.

    Examples
    --------
    >>> X = torch.randn(10, 3, generator=torch.Generator().manual_seed(0))
    >>> round(cka(X, -3 * X), 4)
    1.0
    """
    if len(left) != len(right):
        raise InputError(
            f"CKA compares features of the same examples, got {len(left)} and {len(right)} rows."
        )
    found = UnbiasedCKA()
    for rows in batches(len(left), batch=batch, seed=seed):
        found.add([left[rows]], [right[rows]])
    return found.matrix().item()


def batches(examples: int, *, batch: int = BATCH, seed: int = 0) -> Sequence[Tensor]:
    """The rows of mini-batches of nearly equal size, mixed: examples often come in the order of their tasks."""
    mixed = torch.randperm(examples, generator=torch.Generator().manual_seed(seed))
    return mixed.tensor_split(max(1, math.ceil(examples / batch)))


def _centred(features: Float[Tensor, "batch _"]) -> Float[Tensor, "batch batch"]:
    """The Gram matrix without its diagonal, centred so that each row adds up to 0."""
    x, n = features.detach().double().cpu(), len(features)
    x = x - x.mean(0)  # changes nothing but the rounding
    K = (x @ x.T).fill_diagonal_(0)
    rows = K.sum(1) / (n - 2)
    return (K - rows[:, None] - rows + K.sum() / ((n - 1) * (n - 2))).fill_diagonal_(0)


def compute(subject: Subject) -> dict[str, Any]:
    """Return the numbers of this diagnostic for a run."""
    if subject.frozen:
        raise LeftOut(
            "The method trains nothing in the backbone, so its features are those of before."
        )
    examples = subject.encoded("test")
    rows = batches(sum(map(len, examples)), seed=subject.seed)
    if min(map(len, rows)) < 4:
        raise LeftOut("CKA needs at least 4 test examples.")
    first = before = torch.cat(subject.tested(0))
    to_first, to_previous = [], []
    for step in range(1, len(subject.learned) + 1):
        now = torch.cat(subject.tested(step))
        to_first.append(cka(first, now, seed=subject.seed))
        to_previous.append(cka(before, now, seed=subject.seed))
        before = now
    pretrained = subject.hidden(subject.combined(0), examples)
    last = subject.hidden(subject.combined(len(subject.learned)), examples)
    layers = UnbiasedCKA()
    for some in rows:
        layers.add([layer[some] for layer in pretrained], [layer[some] for layer in last])
    names = ["embeddings", *(f"layer {i}" for i in range(1, len(last)))]
    return {
        "layers": names,
        "to_pretrained": plain(torch.tensor(to_first)),
        "to_previous": plain(torch.tensor(to_previous)),
        "matrix": plain(layers.matrix()),
    }
