"""TIES one task at a time: the baseline of the literature on continual merging."""

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
    """Theta = Theta_pre + scale · v_n, with v_t = TIES(v_(t-1), tau_t) and v_1 = tau_1.

    Parameters
    ----------
    mode
        `fold`: as above. `reference`: M_t = M_(t-1) + scale · TIES(M_(t-1), tau_t) with M_1 = scale
        · tau_1, as FusionBench codes it. This counts earlier merges twice: entries that agree grow
        by 1 + scale at each step. `batch`: TIES of all tasks together: the rule `ties`, which does
        not depend on the order.
    density, how, per
        As in `ties`; FusionBench takes the `sum`.
    scale
        lambda; FusionBench takes 0.3 for 8 tasks and 0.1 for 14 and 20.

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
    TIES: arXiv 2306.01708. As a baseline of continual merging: Tang et al., arXiv 2501.09522.
    """

    def ties(together: dict[str, TaskVector]) -> TaskVector:
        return sparse.ties(
            together,
            density=density,
            how=how,
            per=per,
        )

    # The scale is not passed to `ties`: where it acts is what distinguishes the modes.
    if mode == "batch":
        return ties(vectors) * scale
    first, *later = vectors.values()
    # Each step is made at once: deferred, it would compute all steps before it several times.
    if mode == "reference":
        # M holds scaled vectors, and TIES merges them with an unscaled tau_t.
        merged = first * scale
        for vector in later:
            step = ties({"merged": merged, "new": vector}).made()
            merged = (merged + step * scale).made()
        return merged
    # The first vector is not trimmed until a second one comes.
    merged = first
    for vector in later:
        merged = ties({"merged": merged, "new": vector}).made()
    return merged * scale
