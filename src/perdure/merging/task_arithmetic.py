"""Task arithmetic (Ilharco et al. 2023), the second stage of PIC: add the task vectors, scaled."""

import math

from perdure.errors import InputError
from perdure.rule import nature
from perdure.task_vector import TaskVector, total


@nature("order-free", state="one task vector")
def task_arithmetic(vectors: dict[str, TaskVector], *, scale: float | str = "1/n") -> TaskVector:
    """Theta = Theta_pre + scale · sum of tau_t over the n tasks.

    Parameters
    ----------
    scale
        lambda: a number, `"1/n"` (the mean), `"1/sqrt(n)"`; in a run also `"search"`, by validation accuracy.

    Examples
    --------
    >>> import torch
    >>> vectors = {"a": TaskVector({"w": torch.tensor([1.0, 0.0])}), "b": TaskVector({"w": torch.tensor([1.0, 2.0])})}
    >>> task_arithmetic(vectors, scale=0.25)["w"].tolist()
    [0.5, 0.5]

    References
    ----------
    Ilharco et al., Editing Models with Task Arithmetic, arXiv 2212.04089; Zeng et al., arXiv 2502.10966.
    """
    n = len(vectors)
    named = {"1/n": 1 / n, "1/sqrt(n)": n**-0.5}
    if scale not in named and (isinstance(scale, str) or not math.isfinite(scale)):
        raise InputError(
            f"`scale` of `task_arithmetic` must be a number or one of {[*named, 'search']}, got `{scale}`."
        )
    return total(list(vectors.values())) * (named[scale] if isinstance(scale, str) else scale)
