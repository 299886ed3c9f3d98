"""Linear CKA, a measure of the similarity of two models' features, from unbiased HSIC estimates."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from perdure.analysis.shared import LeftOut, plain
from perdure.analysis.subject import Subject
from perdure.errors import InputError

BATCH = 256


class UnbiasedCKA:
    """CKA between every layer of one model and every layer of another, from mini-batches.

    For features X and Y of the same examples, with K = X Xᵀ and L = Y Yᵀ, their diagonals
    set to 0, and n examples in a batch:

        HSIC₁(K, L) = [tr(K L) + ΣK ΣL / ((n-1)(n-2)) - 2 · 1ᵀ K L 1 / (n-2)] / (n (n-3))
        CKA = Σ_b HSIC₁(K, L) / sqrt(Σ_b HSIC₁(K, K) · Σ_b HSIC₁(L, L))

    HSIC₁ is unbiased (Song et al. 2012), so batches may be small and features wide
    (Nguyen et al. 2021, arXiv 2010.15327; used on continual learners by Kim & Han 2023,
    arXiv 2304.01663). A CKA of 1 means that the features are equal up to rotation and
    scale; a value near 0, of either sign, means that they are independent.

    HSIC₁ is computed as the inner product of K and L after centring both so that the
    off-diagonal entries of each row sum to 0 (Székely & Rizzo 2014), which is equivalent.

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
        """Add a mini-batch, given by its features at each layer of the two models.

        Raises
        ------
        InputError
            The batch has fewer than four examples, or the layers differ in the number of examples.
        """
        sizes = {len(features) for features in (*left, *right)}
        # HSIC₁ divides by n - 3.
        if len(sizes) != 1 or min(sizes) < 4:
            raise InputError(
                f"CKA needs at least four examples, the same for each layer, got {sorted(sizes)}."
            )
        n = sizes.pop()
        scale = n * (n - 3)
        K = _flat(left)
        L = _flat(right)
        both = K @ L.T
        left_alone = K.square().sum(1)
        right_alone = L.square().sum(1)
        # The two models may have any number of layers, which is known only now.
        self._both = self._both + both / scale
        self._left = self._left + left_alone / scale
        self._right = self._right + right_alone / scale

    def matrix(self) -> Float[Tensor, "left right"]:
        """Return the CKA of each left layer with each right layer; nan if features are constant."""
        if isinstance(self._both, float):
            raise InputError("CKA needs at least one batch: call `add` first.")
        # Constant features have an HSIC of 0 with themselves, and 0 / 0 is nan.
        left = torch.as_tensor(self._left)
        right = torch.as_tensor(self._right)
        return self._both / torch.outer(left, right).sqrt()


def cka(
    left: Float[Tensor, "n a"], right: Float[Tensor, "m b"], *, batch: int = BATCH, seed: int = 0
) -> float:
    """Return the CKA of two sets of features of the same examples.

    The features are compared in mini-batches, which are drawn with `seed`.

    Raises
    ------
    InputError
        There are fewer than four examples, or the two sets differ in the number of examples.

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
    layers = UnbiasedCKA()
    for rows in batches(len(left), batch=batch, seed=seed):
        layers.add([left[rows]], [right[rows]])
    return layers.matrix().item()


def batches(examples: int, *, batch: int = BATCH, seed: int = 0) -> Sequence[Tensor]:
    """Return the row numbers of shuffled mini-batches of nearly equal size.

    Shuffling matters because examples are often sorted by task.
    """
    shuffled = torch.randperm(examples, generator=torch.Generator().manual_seed(seed))
    # `split` would leave a small last batch, for which HSIC₁ is undefined below four examples.
    return shuffled.tensor_split(max(1, math.ceil(examples / batch)))


def _flat(layers: Sequence[Float[Tensor, "batch _"]]) -> Float[Tensor, "layers square"]:
    """Return the flattened Gram matrices of all layers as rows, to compare them in one product."""
    rows = []
    for features in layers:
        gram = _centred(features)
        rows.append(gram.flatten())
    return torch.stack(rows)


def _centred(features: Float[Tensor, "batch _"]) -> Float[Tensor, "batch batch"]:
    """Return the Gram matrix with a zero diagonal, centred so that each row sums to 0."""
    n = len(features)
    # In double precision: after centring, the entries are small compared with those of K.
    x = features.detach().double().cpu()
    # The result does not depend on this shift, which avoids rounding errors if means are large.
    x = x - x.mean(0)
    K = (x @ x.T).fill_diagonal_(0)
    # The corrections that make the off-diagonal entries of each row sum to 0.
    rows = K.sum(1) / (n - 2)
    total = K.sum() / ((n - 1) * (n - 2))
    columns = rows[:, None]
    centred = K - columns - rows + total
    return centred.fill_diagonal_(0)


def compute(subject: Subject) -> dict[str, object]:
    """Return the CKA of a run's features between steps, and of layers before and after the run."""
    if subject.frozen:
        raise LeftOut("The method does not train the backbone, so its features stay the same.")
    examples = subject.encoded("test")
    count = sum(len(rows) for rows in examples)
    mini_batches = batches(count, seed=subject.seed)
    if min(len(rows) for rows in mini_batches) < 4:
        raise LeftOut("CKA needs at least 4 test examples.")
    to_pretrained, to_previous = _over_steps(subject)

    steps = len(subject.learned)
    pretrained = subject.combined(0)
    learned = subject.combined(steps)
    initial = subject.hidden(pretrained, examples)
    last = subject.hidden(learned, examples)
    layers = UnbiasedCKA()
    for rows in mini_batches:
        left = [layer[rows] for layer in initial]
        right = [layer[rows] for layer in last]
        layers.add(left, right)
    names = ["embeddings"]
    names += [f"layer {number}" for number in range(1, len(last))]
    return {
        "layers": names,
        "to_pretrained": plain(torch.tensor(to_pretrained)),
        "to_previous": plain(torch.tensor(to_previous)),
        "matrix": plain(layers.matrix()),
    }


def _over_steps(subject: Subject) -> tuple[list[float], list[float]]:
    """Return the CKA of the features after each task, in two lists.

    The first list compares them with the features of the pre-trained model, the second
    with those after the previous task.
    """
    pretrained = torch.cat(subject.tested(0))
    previous = pretrained
    to_pretrained = []
    to_previous = []
    steps = len(subject.learned)
    for step in range(1, steps + 1):
        features = torch.cat(subject.tested(step))
        to_pretrained.append(cka(pretrained, features, seed=subject.seed))
        to_previous.append(cka(previous, features, seed=subject.seed))
        previous = features
    return to_pretrained, to_previous
