"""The mean of the task vectors, updated one task at a time."""

from perdure.merging.rule import nature
from perdure.vectors.task_vector import TaskVector


@nature("order-free", state="one task vector and the number of tasks", layerwise=True)
def running_average(vectors: dict[str, TaskVector]) -> TaskVector:
    """Update the mean with each task vector: M_t = ((t - 1) M_(t-1) + tau_t) / t.

    The result equals `average` up to rounding. Papers on continual merging (such as arXiv
    2501.09522) use this form as a baseline, because only the last M and t have to be
    stored.

    Examples
    --------
    >>> import torch
    >>> a = TaskVector({"w": torch.tensor([1.0])})
    >>> b = TaskVector({"w": torch.tensor([2.0])})
    >>> running_average({"a": a, "b": b})["w"].tolist()
    [1.5]
    """
    merged = TaskVector({})  # a missing layer counts as zero
    for t, vector in enumerate(vectors.values(), start=1):
        earlier = merged * ((t - 1) / t)
        merged = earlier + vector * (1 / t)
    return merged
