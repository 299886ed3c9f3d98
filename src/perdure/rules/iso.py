"""Iso-C and Iso-CTS (Marczak et al. 2025): a sum whose singular values are all equal."""

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
    """Sum the task vectors and set all singular values of each matrix to their mean.

    Theta = Theta_pre + scale · mean(S) U Vᵀ, where U S Vᵀ is the SVD of the summed
    changes to a matrix. In mode `cts`, the weakest singular vectors of the sum are
    replaced by the strongest ones of each task outside the span of those that are kept,
    and U and V are made orthonormal again. Layers that are not matrices are averaged.

    Parameters
    ----------
    mode
        `c` uses only the common subspace; `cts` uses common and task-specific subspaces.
    common
        The fraction of directions that stay common in mode `cts`, in (0, 1].
    scale
        The paper's alpha, tuned for each model. LoRA needs a larger value (see Notes).

    Notes
    -----
    With LoRA, the sum has low rank. This rule averages the nonzero singular values only, and
    adds no directions. The authors' code averages min(out, in) values, most of them zero, and
    assigns the mean to as many directions, most of them arbitrary. At full rank, the results
    are equal.

    Examples
    --------
    >>> import torch
    >>> vectors = {"a": TaskVector({"w": torch.diag(torch.tensor([3.0, 1.0]))})}
    >>> iso(vectors).dense("w").abs().tolist()
    [[2.0, 0.0], [0.0, 2.0]]

    References
    ----------
    Marczak et al., No Task Left Behind, arXiv 2502.04959.
    """

    def merge(name: str, changes: Changes) -> LowRank:
        all_changes = list(changes.values())
        task_sum = summed(all_changes)
        U, S, Vh = svd(task_sum)
        if mode == "cts":
            # k directions stay common; the others are split equally among the tasks.
            rank = len(S)
            specific = rank - int(common * rank)
            per_task = min(
                round(specific / len(vectors)),
                rank // len(vectors),  # rounding up must not exceed the rank
            )
            k = rank - per_task * len(vectors)
            U, S, Vh = U[:, :k], S[:k], Vh[:k]
            triples = []
            for change in all_changes:
                triples.append(strongest(change, per_task, outside=U))
            triples.append((U, S, Vh))
            U, S, Vh = joined(triples)
        # All singular values become their mean; S does not include zeros (see Notes).
        B = scale * S.mean() * U
        return LowRank(B, Vh)

    return each_matrix(vectors, merge)
