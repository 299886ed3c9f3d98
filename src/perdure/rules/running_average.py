"""The mean of the task vectors, one at a time."""

from perdure.merging.rule import nature
from perdure.vectors.task_vector import TaskVector


@nature("order-free", state="one task vector and the number of tasks", layerwise=True)
def running_average(vectors: dict[str, TaskVector]) -> TaskVector:
    """M_t = ((t - 1) M_(t-1) + tau_t) / t: equal to `average` up to rounding.

    This is its form in the continual-merging literature (the baseline of arXiv 2501.09522): only
    the last M and t are kept.

    Examples
    --------
    >>> import torch
    >>> a = TaskVector({"w": torch.tensor([1.0])})
    >>> b = TaskVector({"w": torch.tensor([2.0])})
    >>> running_average({"a": a, "b": b})["w"].tolist()
    [1.5]
    """
    merged = TaskVector({})  # zero: a layer that is missing counts as zero
    for t, vector in enumerate(vectors.values(), start=1):
        earlier = merged * ((t - 1) / t)
        merged = earlier + vector * (1 / t)
    return merged
