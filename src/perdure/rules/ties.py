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

    Trim: in each task vector tau_t, keep the fraction `density` of entries with the
    largest magnitudes. Elect: the sign of an entry is gamma = sgn(sum of the trimmed
    tau_t), or the sign that most entries have if the sum is 0. Merge: tau is the mean of
    the trimmed tau_t that are nonzero and have the sign gamma.

    Parameters
    ----------
    density
        The fraction of entries to keep, in (0, 1]. Entries tied with the smallest one
        kept are also kept.
    scale
        The paper's lambda: 1 with the mean. With the sum, papers use 0.3 for eight tasks.
    how
        Use the `mean` (as published) or the `sum` of the entries that agree.
    per
        Trim over the entire `model` (as published), or within each `layer`, as in peft
        and mergekit.

    Examples
    --------
    >>> import torch
    >>> a = TaskVector({"w": torch.tensor([1.0, -4.0])})
    >>> b = TaskVector({"w": torch.tensor([3.0, 2.0])})
    >>> ties({"a": a, "b": b}, density=1.0).dense("w").tolist()
    [2.0, -4.0]

    References
    ----------
    Yadav et al., TIES-Merging, arXiv 2306.01708. The authors' code keeps one more entry when it
    trims. peft and mergekit treat an entry whose sum is 0 as positive. If there is no majority
    sign either, the authors' code keeps the negative values, and this rule keeps none.
    """
    # `continual_ties` and `knots` use the same steps, but apply the scale differently.
    merged = sparse.ties(
        vectors,
        density=density,
        how=how,
        per=per,
    )
    return merged * scale
