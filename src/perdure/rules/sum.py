"""The plain sum, for methods whose training keeps task vectors from interfering."""

from perdure.merging.rule import nature
from perdure.vectors.task_vector import TaskVector, total


# This shadows Python's `sum`, because a rule is named after its file.
@nature("order-free", state="one task vector", layerwise=True)
def sum(vectors: dict[str, TaskVector]) -> TaskVector:
    """Add up the task vectors: Theta = Theta_pre + sum of tau_t.

    O-LoRA (arXiv 2310.14152) and InfLoRA (arXiv 2404.00228) combine tasks in this way.
    The result is the same as that of `task_arithmetic` with scale 1.

    Examples
    --------
    >>> import torch
    >>> a = TaskVector({"w": torch.tensor([1.0])})
    >>> b = TaskVector({"w": torch.tensor([2.0])})
    >>> sum({"a": a, "b": b})["w"].tolist()
    [3.0]
    """
    return total(list(vectors.values()))
