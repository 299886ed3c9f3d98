"""Iso-C and Iso-CTS (Marczak et al. 2025): the sum of the task vectors with all its singular values equal."""

from typing import Annotated, Literal

from annotated_types import Gt, Le

from perdure.merging.rule import nature
from perdure.rules.parts.spectral import Changes, each_matrix, joined, strongest, summed
from perdure.vectors.task_vector import LowRank, TaskVector, svd

Mode = Literal["c", "cts"]


@nature("order-free", state="one task vector; for cts, n", layerwise=True)
def iso(
    vectors: dict[str, TaskVector],
    *,
    mode: Mode = "c",
    common: Annotated[float, Gt(0), Le(1)] = 0.8,
    scale: float = 1.0,
) -> TaskVector:
    """Theta = Theta_pre + scale · mean(S) U Vᵀ, with U S Vᵀ = sum of tau_t of each matrix.

    With `cts` the least singular vectors of the sum give way to the strongest of each task outside of the span of those
    that stay, and U and V are made orthonormal again. What is no matrix is averaged.

    Parameters
    ----------
    mode
        `c`: the common subspace; `cts`: common and task-specific subspaces.
    common
        The share of the common directions for `cts`, in (0, 1].
    scale
        alpha, which the authors search for each model; their mean (see Notes) is small for LoRA, and asks for more.

    Notes
    -----
    For LoRA the sum is not of full rank. The mean is over its rank, and no other directions are added: the authors'
    code takes the mean over min(out, in) values, most of which are zero, and gives it to as many directions, most of
    which are arbitrary. For full rank both are the same.

    Examples
    --------
    >>> import torch
    >>> iso({"a": TaskVector({"w": torch.diag(torch.tensor([3.0, 1.0]))})}).dense("w").abs().tolist()
    [[2.0, 0.0], [0.0, 2.0]]

    References
    ----------
    Marczak et al., No Task Left Behind, arXiv 2502.04959.
    """

    def merge(name: str, changes: Changes) -> LowRank:
        U, S, Vh = svd(summed(list(changes.values())))
        if mode == "cts":
            own = round((len(S) - int(common * len(S))) / len(vectors))  # directions of each task
            own = min(own, len(S) // len(vectors))
            k = len(S) - own * len(vectors)
            specific = [strongest(change, own, outside=U[:, :k]) for change in changes.values()]
            U, S, Vh = joined([*specific, (U[:, :k], S[:k], Vh[:k])])
        return LowRank(scale * S.mean() * U, Vh)

    return each_matrix(vectors, merge)
