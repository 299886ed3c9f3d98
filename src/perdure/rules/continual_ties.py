"""TIES applied one task at a time, a common baseline in papers on continual merging."""

from typing import Annotated, Literal

from annotated_types import Gt, Le

from perdure.merging.rule import nature
from perdure.rules.parts import sparse
from perdure.vectors.task_vector import TaskVector

Mode = Literal["fold", "reference", "batch"]


@nature("sequential", state="one full task vector; for batch, n task vectors")
def continual_ties(
    vectors: dict[str, TaskVector],
    *,
    mode: Mode = "fold",
    density: Annotated[float, Gt(0), Le(1)] = 0.2,
    scale: float = 1.0,
    how: sparse.How = "mean",
    per: sparse.Per = "model",
) -> TaskVector:
    """Merge task vectors one at a time with TIES: v_1 = tau_1 and v_t = TIES(v_(t-1), tau_t).

    Parameters
    ----------
    mode
        `fold`: apply the formula above, then Theta = Theta_pre + scale · v_n.
        `reference`: M_t = M_(t-1) + scale · TIES(M_(t-1), tau_t) with M_1 = scale ·
        tau_1, as in FusionBench's code. This counts earlier tasks twice: with the `sum`,
        their entries are multiplied by 1 + scale at each step where the signs agree.
        `batch`: apply TIES to all tasks in one pass, like the rule `ties`, in any order.
    density, how, per
        See `ties`. FusionBench uses the `sum`.
    scale
        The paper's lambda. FusionBench uses 0.3 for 8 tasks, and 0.1 for 14 or 20 tasks.

    Examples
    --------
    >>> import torch
    >>> a = TaskVector({"w": torch.tensor([1.0])})
    >>> b = TaskVector({"w": torch.tensor([3.0])})
    >>> for mode in ("fold", "reference", "batch"):
    ...     continual_ties({"a": a, "b": b}, mode=mode, how="sum").dense("w").item()
    4.0
    5.0
    4.0

    References
    ----------
    Yadav et al., TIES-Merging, arXiv 2306.01708. Tang et al., arXiv 2501.09522, use TIES as a
    baseline for continual merging.
    """

    def ties(together: dict[str, TaskVector]) -> TaskVector:
        return sparse.ties(
            together,
            density=density,
            how=how,
            per=per,
        )

    # Scaling is not part of `ties`, because each mode applies the scale at a different point.
    if mode == "batch":
        return ties(vectors) * scale
    first, *later = vectors.values()
    # Compute each step immediately. If steps were deferred, each would repeat all earlier ones.
    if mode == "reference":
        # M holds scaled vectors, and TIES merges them with an unscaled tau_t.
        merged = first * scale
        for vector in later:
            step = ties({"merged": merged, "new": vector}).made()
            merged = (merged + step * scale).made()
        return merged
    # The first vector is trimmed only when a second one arrives.
    merged = first
    for vector in later:
        merged = ties({"merged": merged, "new": vector}).made()
    return merged * scale
