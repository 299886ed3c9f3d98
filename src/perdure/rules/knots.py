"""KnOTS (Stoica et al. 2025): align the tasks by a common decomposition, then merge."""

from typing import Annotated, Literal

from annotated_types import Gt, Le

from perdure.merging.rule import nature
from perdure.rules.parts import sparse
from perdure.rules.parts.spectral import aligned
from perdure.vectors.task_vector import LowRank, TaskVector, dense, total

Then = Literal["ties", "sum"]


@nature("order-free", state="n task vectors")
def knots(
    vectors: dict[str, TaskVector],
    *,
    density: Annotated[float, Gt(0), Le(1)] = 0.2,
    scale: float = 1.0,
    then: Then = "ties",
    how: sparse.How = "mean",
    per: sparse.Per = "model",
) -> TaskVector:
    """Theta = Theta_pre + scale · U merge(S V_1ᵀ, …, S V_nᵀ), with U S [V_1ᵀ … V_nᵀ] = [tau_1 … tau_n] of each matrix.

    The matrices side by side have a common basis U, in which the tasks are comparable; there they are merged as by
    `ties`. What is no matrix is merged as it is. The result is U times what is merged, in factors.

    Parameters
    ----------
    density, how, per
        As of `ties`, for the entries of S V_tᵀ.
    scale
        lambda; the authors search it for each set of tasks.
    then
        `ties` (KnOTS-TIES), or `sum` (KnOTS-TA, which is the sum of the task vectors but for rounding).

    Examples
    --------
    >>> import torch
    >>> one = {"a": TaskVector({"w": LowRank(torch.ones(2, 1), torch.tensor([[1.0, 0.1]]))})}
    >>> [[round(x, 4) for x in row] for row in knots(one, density=0.5).dense("w").abs().tolist()]
    [[1.0, 0.0], [1.0, 0.0]]

    References
    ----------
    Stoica et al., Model Merging with SVD to Tie the KnOTS, arXiv 2410.19735.
    """
    bases, parts = aligned(vectors)
    merged = (
        total(list(parts.values()))
        if then == "sum"
        else sparse.ties(parts, density=density, how=how, per=per)
    )
    return scale * TaskVector(
        {k: LowRank(bases[k], dense(v)) if k in bases else v for k, v in merged.items()}
    )
