"""TSV-Merge (Gargiulo et al. 2025): the strongest singular vectors of each task, made orthogonal across tasks."""

from typing import Annotated

from annotated_types import Ge

from perdure.merging.rule import nature
from perdure.rules.parts.spectral import Changes, each_matrix, joined, strongest
from perdure.vectors.task_vector import LowRank, TaskVector


@nature("order-free", state="n task vectors", layerwise=True)
def tsv(
    vectors: dict[str, TaskVector], *, rank: Annotated[int, Ge(0)] = 0, scale: float = 1.0
) -> TaskVector:
    """Theta = Theta_pre + scale · U diag(S_1, …, S_n) Vᵀ, with U the nearest orthonormal matrix to [U_1 … U_n].

    Of each task's matrix the `rank` greatest singular triples U_t, S_t, V_t are taken; V is made of [V_1 … V_n] as U
    of theirs. Neither contains more than the numerical rank: LoRA's other singular vectors are arbitrary. What is no
    matrix is averaged.

    Parameters
    ----------
    rank
        How many triples of each task; 0 (published): min(out, in) / n, which for LoRA leaves out none as a rule.
    scale
        alpha of the paper.

    Examples
    --------
    >>> import torch
    >>> matrices = [torch.diag(torch.tensor([3.0, 1.0])), torch.diag(torch.tensor([0.5, 2.0]))]
    >>> tsv({t: TaskVector({"w": w}) for t, w in zip("ab", matrices)}).dense("w").abs().tolist()
    [[3.0, 0.0], [0.0, 2.0]]

    References
    ----------
    Gargiulo et al., Task Singular Vectors, arXiv 2412.00081. Its code takes singular vectors of values that are zero
    too, where a matrix has no more.
    """

    def merge(name: str, changes: Changes) -> LowRank:
        most = rank or max(1, min(next(iter(changes.values())).shape) // len(vectors))
        U, S, Vh = joined([strongest(change, most) for change in changes.values()])
        return LowRank(scale * U * S, Vh)

    return each_matrix(vectors, merge)
