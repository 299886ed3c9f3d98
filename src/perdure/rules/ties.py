"""TIES (Yadav et al. 2023): trim, elect signs, merge what agrees."""

from typing import Annotated

from annotated_types import Gt, Le

from perdure.merging.rule import nature
from perdure.rules.parts import sparse
from perdure.vectors.task_vector import TaskVector


@nature("order-free", state="n task vectors")
def ties(
    vectors: dict[str, TaskVector],
    *,
    density: Annotated[float, Gt(0), Le(1)] = 0.2,
    scale: float = 1.0,
    how: sparse.How = "mean",
    per: sparse.Per = "model",
) -> TaskVector:
    """Theta = Theta_pre + scale · tau, from the largest entries that agree in sign.

    Trim: keep the share `density` of largest magnitudes of each tau_t. Elect: gamma = sgn(sum of
    tau_t) for each entry; if it is 0, the sign of most entries. Merge: tau = the mean of the
    trimmed tau_t that are not 0 and have the sign gamma.

    Parameters
    ----------
    density
        The share of entries that trimming keeps, in (0, 1], including all entries tied with the
        smallest of them.
    scale
        lambda: 1 with the mean; the literature takes 0.3 with the sum and eight tasks.
    how
        The `mean` (published) or the `sum` of what agrees.
    per
        Trim over the whole `model` (published), or in each `layer` alone, as peft and mergekit
        do.

    Examples
    --------
    >>> import torch
    >>> a = TaskVector({"w": torch.tensor([1.0, -4.0])})
    >>> b = TaskVector({"w": torch.tensor([3.0, 2.0])})
    >>> ties({"a": a, "b": b}, density=1.0).dense("w").tolist()
    [2.0, -4.0]

    References
    ----------
    Yadav et al., TIES-Merging, arXiv 2306.01708. Its code keeps one entry more. Entries whose sum
    is 0 are positive in peft and mergekit; if there is no majority either, its code takes the
    negative ones, and we take none.
    """
    # `continual_ties` and `knots` use the same steps, each with a scale of its own.
    merged = sparse.ties(
        vectors,
        density=density,
        how=how,
        per=per,
    )
    return merged * scale
