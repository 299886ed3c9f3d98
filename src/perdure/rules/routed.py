"""Routing by the task posterior, which picks one task's adapter for each input."""

from perdure.merging.rule import nature
from perdure.models.mixture import Mixture
from perdure.vectors.task_vector import TaskVector


@nature(
    "routed",
    state="n task vectors, and the statistics of the task posterior",
    low_rank=True,
)
def routed(vectors: dict[str, TaskVector]) -> Mixture:
    """Route each sample to its most likely task t: y = W0 x + ΔW_t x, t = argmax p(t | x).

    One forward pass handles a batch with several tasks, whereas `oracle` needs one pass
    per task. If the tasks are known, the result is the same as that of `oracle`.
    Concatenated heads have no task posterior, so each task's head is run with the adapter
    of that task.

    Examples
    --------
    >>> import torch
    >>> from perdure.vectors.task_vector import LowRank
    >>> vectors = {"a": TaskVector({"w": LowRank(torch.ones(3, 1), torch.ones(1, 2))})}
    >>> routed(vectors).gate_rank
    0
    """
    return Mixture(vectors)
