"""The last task vector alone, as after sequential fine-tuning."""

from perdure.merging.rule import nature
from perdure.vectors.task_vector import TaskVector


@nature("sequential", state="one task vector")
def last(vectors: dict[str, TaskVector]) -> TaskVector:
    """Use only the last task vector tau_T: Theta = Theta_pre + tau_T.

    Examples
    --------
    >>> import torch
    >>> a = TaskVector({"w": torch.tensor([1.0])})
    >>> b = TaskVector({"w": torch.tensor([2.0])})
    >>> last({"a": a, "b": b})["w"].tolist()
    [2.0]
    """
    return list(vectors.values())[-1]
