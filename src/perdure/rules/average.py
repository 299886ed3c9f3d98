"""The mean of the task vectors, as in a model soup of separately trained models."""

from perdure.merging.rule import nature
from perdure.vectors.task_vector import TaskVector, total


@nature("order-free", state="one task vector and the number of tasks", layerwise=True)
def average(vectors: dict[str, TaskVector]) -> TaskVector:
    """Average the n task vectors tau_t: Theta = Theta_pre + 1/n · sum of tau_t.

    This is the same as `task_arithmetic` with scale 1/n. `running_average` computes the
    same result one task at a time.

    Examples
    --------
    >>> import torch
    >>> a = TaskVector({"w": torch.tensor([1.0])})
    >>> b = TaskVector({"w": torch.tensor([2.0])})
    >>> average({"a": a, "b": b})["w"].tolist()
    [1.5]

    References
    ----------
    Wortsman et al., Model Soups, arXiv 2203.05482 (for models fine-tuned on the same task).
    """
    # Divide by the number of all tasks: a task that lacks a layer adds zero there.
    n = len(vectors)
    return total(list(vectors.values())) * (1 / n)
