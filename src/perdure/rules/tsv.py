"""TSV-Merge (Gargiulo et al. 2025): the leading singular vectors, made orthogonal."""

from typing import Annotated

from annotated_types import Ge

from perdure.merging.rule import nature
from perdure.rules.parts.spectral import Changes, Triples, each_matrix, joined, strongest
from perdure.vectors.task_vector import LowRank, TaskVector


@nature("order-free", state="n task vectors", layerwise=True)
def tsv(
    vectors: dict[str, TaskVector], *, rank: Annotated[int, Ge(0)] = 0, scale: float = 1.0
) -> TaskVector:
    """Make the leading singular vectors of all tasks orthogonal, and merge them.

    Theta = Theta_pre + scale · U diag(S_1, …, S_n) Vᵀ, where U_t, S_t, V_t are the `rank`
    largest singular triples of task t's matrix. U is the matrix with orthonormal columns
    that is closest to [U_1 … U_n], and V is the one closest to [V_1 … V_n]. Triples
    beyond the numerical rank are not used, because their singular vectors are arbitrary.
    Layers that are not matrices are averaged.

    Parameters
    ----------
    rank
        The number of triples per task; 0 (as published) means min(out, in) / n, which is
        usually at least the rank of a LoRA.
    scale
        The paper's alpha.

    Examples
    --------
    >>> import torch
    >>> a = TaskVector({"w": torch.diag(torch.tensor([3.0, 1.0]))})
    >>> b = TaskVector({"w": torch.diag(torch.tensor([0.5, 2.0]))})
    >>> tsv({"a": a, "b": b}).dense("w").abs().tolist()
    [[3.0, 0.0], [0.0, 2.0]]

    References
    ----------
    Gargiulo et al., Task Singular Vectors, arXiv 2412.00081. If a matrix has lower rank, the
    authors' code also uses singular vectors whose singular values are zero.
    """

    def merge(name: str, changes: Changes) -> LowRank:
        first = next(iter(changes.values()))
        full_rank = min(first.shape)
        # At least one triple, even if the matrix is smaller than the number of tasks.
        published = max(1, full_rank // len(vectors))
        triples: list[Triples] = []
        for change in changes.values():
            triples.append(strongest(change, rank or published))
        # Return factors of U diag(S) Vᵀ: the result is low-rank even if the changes are full.
        U, S, Vh = joined(triples)
        B = scale * U * S
        return LowRank(B, Vh)

    return each_matrix(vectors, merge)
