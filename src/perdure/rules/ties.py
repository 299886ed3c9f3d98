"""TIES (Yadav et al. 2023): trim, elect signs, merge the entries that agree."""

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
    """Merge the largest entries that agree in sign: Theta = Theta_pre + scale · tau.

    Trim: keep the share `density` of each task vector tau_t with the largest magnitudes. Elect:
    each entry's sign is gamma = sgn(sum of the trimmed tau_t); if it is 0, the sign of most
    entries. Merge: tau is the mean of the trimmed tau_t that are not 0 and have the sign gamma.

    Parameters
    ----------
    density
        The share of entries to keep, in (0, 1]; entries tied with the smallest one kept are
        also kept.
    scale
        The paper's lambda: 1 with the mean; papers use 0.3 with the sum and eight tasks.
    how
        The `mean` (published) or the `sum` of the entries that agree.
    per
        Trim over the whole `model` (published), or within each `layer`, as in peft and
        mergekit.

    Examples
    --------
    >>> import torch
    >>> a = TaskVector({"w": torch.tensor([1.0, -4.0])})
    >>> b = TaskVector({"w": torch.tensor([3.0, 2.0])})
    >>> ties({"a": a, "b": b}, density=1.0).dense("w").tolist()
    [2.0, -4.0]

    References
    ----------
    Yadav et al., TIES-Merging, arXiv 2306.01708. Its code keeps one more entry. peft and
    mergekit take an entry whose sum is 0 as positive; if there is no majority either, the
    authors' code keeps the negative values, and we keep none.
    """
    # `continual_ties` and `knots` use the same steps, each with its own scale.
    merged = sparse.ties(
        vectors,
        density=density,
        how=how,
        per=per,
    )
    return merged * scale
