"""TSV-Merge (Gargiulo et al. 2025): the strongest singular vectors, made orthogonal."""

from typing import Annotated

from annotated_types import Ge

from perdure.merging.rule import nature
from perdure.rules.parts.spectral import Changes, Triples, each_matrix, joined, strongest
from perdure.vectors.task_vector import LowRank, TaskVector


@nature("order-free", state="n task vectors", layerwise=True)
def tsv(
    vectors: dict[str, TaskVector], *, rank: Annotated[int, Ge(0)] = 0, scale: float = 1.0
) -> TaskVector:
    """Theta = Theta_pre + scale · U diag(S_1, …, S_n) Vᵀ.

    U_t, S_t, V_t are the `rank` greatest singular triples of each task's matrix. U is the closest
    orthonormal matrix to [U_1 … U_n], and V to [V_1 … V_n]. Neither exceeds the numerical rank: the
    other singular vectors of a LoRA are arbitrary. Layers that are not matrices are averaged.

    Parameters
    ----------
    rank
        The number of triples of each task; 0 (published) means min(out, in) / n, which for LoRA
        usually includes all.
    scale
        alpha of the paper.

    Examples
    --------
    >>> import torch
    >>> a = TaskVector({"w": torch.diag(torch.tensor([3.0, 1.0]))})
    >>> b = TaskVector({"w": torch.diag(torch.tensor([0.5, 2.0]))})
    >>> tsv({"a": a, "b": b}).dense("w").abs().tolist()
    [[3.0, 0.0], [0.0, 2.0]]

    References
    ----------
    Gargiulo et al., Task Singular Vectors, arXiv 2412.00081. Where a matrix has no more, its code
    also takes singular vectors whose values are zero.
    """

    def merge(name: str, changes: Changes) -> LowRank:
        first = next(iter(changes.values()))
        full_rank = min(first.shape)
        # At least one triple, also of a matrix that is smaller than the number of tasks.
        published = max(1, full_rank // len(vectors))
        triples: list[Triples] = []
        for change in changes.values():
            triples.append(strongest(change, rank or published))
        # Factors of U diag(S) Vᵀ: the result is low-rank, also where the changes were full.
        U, S, Vh = joined(triples)
        B = scale * U * S
        return LowRank(B, Vh)

    return each_matrix(vectors, merge)
