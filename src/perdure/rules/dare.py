"""DARE (Yu et al. 2024): drop entries at random, rescale the rest, and combine."""

from typing import Annotated

import torch
from annotated_types import Ge, Lt

from perdure.merging.rule import nature
from perdure.rules.parts import sparse
from perdure.vectors.task_vector import TaskVector


@nature("order-free", state="n task vectors; for the sum and the average, one", layerwise=True)
def dare(
    vectors: dict[str, TaskVector],
    *,
    p: Annotated[float, Ge(0), Lt(1)] = 0.5,
    scale: float = 1.0,
    then: sparse.Then = "average",
    seed: int = 0,
) -> TaskVector:
    """Theta = Theta_pre + scale · combination of m_t ⊙ tau_t / (1 - p), with m_t = 0 with probability p, else 1.

    In expectation nothing has changed. Which entries are dropped depends on the seed, the task's and the layer's name
    alone: neither on the order nor on how many tasks there are.

    Parameters
    ----------
    p
        The share of entries that is dropped, in [0, 1). The paper drops 0.9 and more of large language models.
    scale
        lambda.
    then
        `sum`, `average`, or `ties`: signs are elected and the mean of what agrees taken, without trimming.
    seed
        Another seed drops other entries.

    Examples
    --------
    >>> one = {"a": TaskVector({"w": torch.ones(4)})}
    >>> dare(one, p=0.5, seed=1).dense("w").unique().tolist()
    [0.0, 2.0]

    References
    ----------
    Yu et al., Language Models are Super Mario, arXiv 2311.03099. mergekit's rescaling keeps the sum of magnitudes of
    each tensor instead of dividing by 1 - p.
    """

    def merge(name: str, layer: sparse.Layer) -> torch.Tensor:
        left = [
            sparse.dropped(change, 1 - p, seed=seed, task=task, name=name)
            for task, change in layer.items()
        ]
        return scale * sparse.together(torch.stack(left), then)

    return sparse.each_layer(vectors, merge)
