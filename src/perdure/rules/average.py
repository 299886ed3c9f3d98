"""The mean of the task vectors: a model soup of separately trained models."""

from perdure.merging.rule import nature
from perdure.vectors.task_vector import TaskVector, total


@nature("order-free", state="one task vector and the number of tasks", layerwise=True)
def average(vectors: dict[str, TaskVector]) -> TaskVector:
    """Average the task vectors: Theta = Theta_pre + 1/n · sum of the n tasks' tau_t.

    This is task arithmetic at scale 1/n. `running_average` computes the same, one task at a
    time.

    Examples
    --------
    >>> import torch
    >>> a = TaskVector({"w": torch.tensor([1.0])})
    >>> b = TaskVector({"w": torch.tensor([2.0])})
    >>> average({"a": a, "b": b})["w"].tolist()
    [1.5]

    References
    ----------
    Wortsman et al., Model Soups, arXiv 2203.05482 (there, of models tuned on one task).
    """
    # All tasks count, even in a layer that some of them lack: their change there is zero.
    n = len(vectors)
    return total(list(vectors.values())) * (1 / n)
