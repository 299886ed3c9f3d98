"""SLAO (Qiao & Mahdavi 2026): a single LoRA with the latest A and a running mean of B."""

from collections.abc import Mapping

from perdure.errors import InputError
from perdure.merging.rule import nature
from perdure.vectors.task_vector import LowRank, TaskVector, shapes


@nature(
    "sequential",
    state="one task vector, of the same rank as a single task's",
    low_rank=True,
    layerwise=True,
)
def slao(vectors: dict[str, TaskVector]) -> TaskVector:
    """Merge LoRA factors: keep the last A, and B^t = B^(t-1) + (B_t - B^(t-1)) / sqrt(t).

    Theta = Theta_pre + B^n A_n after n tasks, where B_t A_t is the LoRA change of task t.
    The factors are merged, not their products. This makes sense if each module starts
    from the previous one, as in SLAO: A from an orthonormal basis of the last A, and B
    from the last B (the method `isolated` with `start: orthogonal`). Each B then refers
    to nearly the same A. If a task lacks a layer, B_t is 0 and A is kept.

    Examples
    --------
    >>> import torch
    >>> a = TaskVector({"w": LowRank(torch.tensor([[1.0]]), torch.tensor([[2.0]]))})
    >>> b = TaskVector({"w": LowRank(torch.tensor([[3.0]]), torch.tensor([[4.0]]))})
    >>> merged = slao({"a": a, "b": b})
    >>> round(merged.dense("w").item(), 4)  # (1 + (3 - 1) / sqrt(2)) · 4
    9.6569

    Raises
    ------
    InputError
        A layer is not low-rank, or its rank differs between tasks.

    References
    ----------
    Qiao & Mahdavi, Merge before Forget, arXiv 2512.23017.
    """
    shapes(vectors)  # raises if a layer's shape differs between tasks
    merged: dict[str, LowRank] = {}
    for t, (task, vector) in enumerate(vectors.items(), start=1):
        factors = _factors(task, vector, merged)
        # Include layers that only earlier tasks have, whose B shrinks towards B_t = 0.
        for name in {**merged, **factors}:
            old = merged.get(name)
            new = factors.get(name)
            latest = new or merged[name]
            # A missing B is zero, with the shape and dtype of the other one.
            B_before = old.B if old else 0.0 * latest.B
            B_t = new.B if new else 0.0 * latest.B
            B = B_before + (B_t - B_before) / t**0.5
            merged[name] = LowRank(B, latest.A)
    return TaskVector(merged)


def _factors(task: str, vector: TaskVector, merged: Mapping[str, LowRank]) -> dict[str, LowRank]:
    """Return a task vector's LoRA factors; raise if their ranks differ from the merged ones."""
    factors: dict[str, LowRank] = {}
    for name, entry in vector.items():
        if not isinstance(entry, LowRank):
            raise InputError(
                f"`slao` merges LoRA factors, but `{name}` of `{task}` is a full tensor."
            )
        if name in merged and merged[name].rank != entry.rank:
            ranks = f"{entry.rank} for `{task}` and {merged[name].rank} before"
            raise InputError(
                f"`slao` needs the same rank for all tasks, but `{name}` has rank {ranks}."
            )
        factors[name] = entry
    return factors
