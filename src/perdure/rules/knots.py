"""KnOTS (Stoica et al. 2025): align the tasks with a joint decomposition, then merge them."""

from typing import Annotated, Literal

from annotated_types import Gt, Le

from perdure.merging.rule import nature
from perdure.rules.parts import sparse
from perdure.rules.parts.spectral import aligned
from perdure.vectors.task_vector import Entry, LowRank, TaskVector, dense, total

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
    """Merge the changes to each matrix in a common basis, with TIES or by summing them.

    Theta = Theta_pre + scale · U merge(S V_1ᵀ, …, S V_nᵀ), where U S [V_1ᵀ … V_nᵀ] is the
    SVD of the concatenated task vectors [tau_1 … tau_n]. In the common basis U, the tasks
    can be compared entry by entry. The result is returned as low-rank factors. Layers
    that are not matrices are merged without a change of basis.

    Parameters
    ----------
    density, how, per
        See `ties`. They apply to the entries of S V_tᵀ.
    scale
        The paper's lambda, which the authors tune for each set of tasks.
    then
        `ties` (KnOTS-TIES), or `sum` (KnOTS-TA, which equals the sum of the task vectors
        up to rounding).

    Examples
    --------
    >>> import torch
    >>> layer = LowRank(torch.ones(2, 1), torch.tensor([[1.0, 0.1]]))
    >>> merged = knots({"a": TaskVector({"w": layer})}, density=0.5)
    >>> merged.dense("w").abs().round(decimals=4).tolist()
    [[1.0, 0.0], [1.0, 0.0]]

    References
    ----------
    Stoica et al., Model Merging with SVD to Tie the KnOTS, arXiv 2410.19735.
    """
    # The coordinates are full matrices (k × in), because trimming needs entries, not factors.
    bases, coordinates = aligned(vectors)
    if then == "sum":
        merged = total(list(coordinates.values()))
    else:
        merged = sparse.ties(
            coordinates,
            density=density,
            how=how,
            per=per,
        )
    entries: dict[str, Entry] = {}
    for name, entry in merged.items():
        if name in bases:  # a matrix: transform it back from the common basis
            entry = LowRank(bases[name], dense(entry))
        entries[name] = entry
    return scale * TaskVector(entries)
