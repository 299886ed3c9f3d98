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
        `fold`: as above; `reference`: M_t = M_(t-1) + scale · TIES(M_(t-1), tau_t) with M_1 = scale · tau_1, as
        FusionBench codes it, which counts what is merged twice: entries that agree grow by 1 + scale at each step;
        `batch`: TIES of all at once, the rule `ties`, for which the order does not matter.
    density, how, per
        As of `ties`; FusionBench takes the `sum`.
    scale
        lambda; FusionBench takes 0.3 for 8 tasks and 0.1 for 14 and 20.

    Examples
    --------
    >>> import torch
    >>> vectors = {"a": TaskVector({"w": torch.tensor([1.0])}), "b": TaskVector({"w": torch.tensor([3.0])})}
    >>> [continual_ties(vectors, mode=mode, how="sum").dense("w").item() for mode in ("fold", "reference", "batch")]
    [4.0, 5.0, 4.0]

    References
    ----------
    TIES: arXiv 2306.01708. As a baseline of continual merging: Tang et al., arXiv 2501.09522.
    """
    if mode == "batch":
        return sparse.ties(vectors, density=density, how=how, per=per) * scale
    first, *rest = vectors.values()
    merged = first * scale if mode == "reference" else first
    for vector in rest:
        step = sparse.ties(
            {"merged": merged, "new": vector}, density=density, how=how, per=per
        ).made()
        merged = (merged + step * scale).made() if mode == "reference" else step
    return merged if mode == "reference" else merged * scale
