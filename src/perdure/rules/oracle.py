"""One adapter per task, used only for that task: the upper bound for any combination."""

from perdure.merging.rule import nature
from perdure.vectors.task_vector import TaskVector


@nature("routed", state="n task vectors")
def oracle(vectors: dict[str, TaskVector]) -> dict[str, TaskVector]:
    """Use a separate model for each task t, without merging: Theta_t = Theta_pre + tau_t.

    If the task of each input is known, this is the upper bound for methods that isolate
    tasks. Otherwise, every task's adapter and head are run on the input, which costs one
    forward pass per task, and the prediction is chosen from the concatenated heads or by
    the task posterior.

    Examples
    --------
    >>> import torch
    >>> a = TaskVector({"w": torch.ones(1)})
    >>> b = TaskVector({"w": torch.ones(1)})
    >>> list(oracle({"a": a, "b": b}))
    ['a', 'b']
    """
    return dict(vectors)
