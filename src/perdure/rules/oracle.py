"""One adapter per task, each used for its own task: the upper bound for any combination."""

from perdure.merging.rule import nature
from perdure.vectors.task_vector import TaskVector


@nature("routed", state="n task vectors")
def oracle(vectors: dict[str, TaskVector]) -> dict[str, TaskVector]:
    """Use each task's own task vector, uncombined: Theta_t = Theta_pre + tau_t.

    If each input's task is known, this is the upper bound for methods that isolate tasks.
    Otherwise, each task's head reads its own adapter, and concatenated heads or the task
    posterior choose among them, at the cost of one forward pass per task.

    Examples
    --------
    >>> import torch
    >>> a = TaskVector({"w": torch.ones(1)})
    >>> b = TaskVector({"w": torch.ones(1)})
    >>> list(oracle({"a": a, "b": b}))
    ['a', 'b']
    """
    return dict(vectors)
