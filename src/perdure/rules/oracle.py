"""One adapter per task, each used for its own task: the bound of every combination."""

from perdure.merging.rule import nature
from perdure.vectors.task_vector import TaskVector


@nature("routed", state="n task vectors")
def oracle(vectors: dict[str, TaskVector]) -> dict[str, TaskVector]:
    """Theta_t = Theta_pre + tau_t for an input of task t. Nothing is combined.

    With the task given it is the upper bound of methods that isolate their tasks. Without it, each task's head reads
    its own adapter, and heads or posterior choose among them, at the cost of one forward pass per task.

    Examples
    --------
    >>> import torch
    >>> list(oracle({"a": TaskVector({"w": torch.ones(1)}), "b": TaskVector({"w": torch.ones(1)})}))
    ['a', 'b']
    """
    return dict(vectors)
