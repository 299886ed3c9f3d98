"""The task posterior picks one task's adapter for each input."""

from perdure.merging.rule import nature
from perdure.models.mixture import Mixture
from perdure.vectors.task_vector import TaskVector


@nature(
    "routed",
    state="n task vectors, and the statistics of the task posterior",
    low_rank=True,
)
def routed(vectors: dict[str, TaskVector]) -> Mixture:
    """y = W0 x + ΔW_t x with t = argmax p(t | x) for each sample of a batch.

    One forward pass serves a batch of mixed tasks, whereas `oracle` needs one per task. With the
    task given, it equals `oracle`; with concatenated heads and no posterior, each head reads its
    own adapter.

    Examples
    --------
    >>> import torch
    >>> from perdure.vectors.task_vector import LowRank
    >>> vectors = {"a": TaskVector({"w": LowRank(torch.ones(3, 1), torch.ones(1, 2))})}
    >>> routed(vectors).gate_rank
    0
    """
    return Mixture(vectors)
