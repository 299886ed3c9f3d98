"""SLAO's merge (Qiao & Mahdavi 2026): one LoRA, with the latest A and a running mean of B."""

from perdure.errors import InputError
from perdure.merging.rule import nature
from perdure.vectors.task_vector import LowRank, TaskVector, shapes


@nature("sequential", state="one task vector, of the rank of one", low_rank=True, layerwise=True)
def slao(vectors: dict[str, TaskVector]) -> TaskVector:
    """Theta = Theta_pre + B A, with A = A_n and B^t = B^(t-1) + (B_t - B^(t-1)) / sqrt(t).

    The factors are merged and not their products. That means something for modules of which each is started from the
    last, as SLAO does (A from an orthonormal basis of the last A, B from the last B): B is then meant for nearly the
    same A. A layer that a task lacks has B_t = 0 there, and the A of before.

    Examples
    --------
    >>> import torch
    >>> one, two = (LowRank(torch.tensor([[b]]), torch.tensor([[a]])) for b, a in ((1.0, 2.0), (3.0, 4.0)))
    >>> merged = slao({"a": TaskVector({"w": one}), "b": TaskVector({"w": two})})
    >>> round(merged.dense("w").item(), 4)  # (1 + (3 - 1) / sqrt(2)) · 4
    9.6569

    Raises
    ------
    InputError
        A layer is not low-rank, or not of the same rank for all tasks.

    References
    ----------
    Qiao & Mahdavi, Merge before Forget, arXiv 2512.23017.
    """
    shapes(vectors)  # which belong together
    merged: dict[str, LowRank] = {}
    for t, (task, vector) in enumerate(vectors.items(), start=1):
        for name, entry in vector.items():
            if not isinstance(entry, LowRank):
                raise InputError(
                    f"`slao` merges the factors of LoRA, but `{name}` of `{task}` is a full tensor."
                )
            if name in merged and merged[name].rank != entry.rank:
                ranks = f"{entry.rank} for `{task}` and {merged[name].rank} before"
                raise InputError(
                    f"`slao` needs one rank for all tasks, but `{name}` has the rank {ranks}."
                )
        for name in {**merged, **vector.entries}:
            old, new = merged.get(name), vector.entries.get(name)
            latest = new if isinstance(new, LowRank) else merged[name]
            before = old.B if old else 0.0 * latest.B
            now = latest.B if new else 0.0 * latest.B
            merged[name] = LowRank(before + (now - before) / t**0.5, latest.A)
    return TaskVector(merged)
