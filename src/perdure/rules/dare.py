"""DARE (Yu et al. 2024): drop entries at random, rescale the rest, and combine."""

from typing import Annotated

import torch
from annotated_types import Ge, Lt

from perdure.merging.rule import nature
from perdure.rules.parts import sparse
from perdure.vectors.task_vector import TaskVector


@nature(
    "order-free",
    state="n task vectors; for the sum and the average, one",
    layerwise=True,
)
def dare(
    vectors: dict[str, TaskVector],
    *,
    p: Annotated[float, Ge(0), Lt(1)] = 0.5,
    scale: float = 1.0,
    then: sparse.Then = "average",
    seed: int = 0,
) -> TaskVector:
    """Drop random entries of each task vector, rescale the others, and combine the results.

    Theta = Theta_pre + scale · combination of m_t ⊙ tau_t / (1 - p). Each entry of the mask
    m_t is 0 with probability p, otherwise 1, so the expectation is tau_t. The seed and the
    names of the task and the layer decide which entries are dropped; the order and the number
    of tasks do not matter.

    Parameters
    ----------
    p
        The share of entries to drop, in [0, 1). The paper drops 0.9 or more in large language
        models.
    scale
        A factor for the combination.
    then
        `sum`, `average`, or `ties`: elect signs and average the entries that agree, without
        trimming.
    seed
        The seed that decides which entries are dropped.

    Examples
    --------
    >>> vectors = {"a": TaskVector({"w": torch.ones(4)})}
    >>> dare(vectors, p=0.5, seed=1).dense("w").unique().tolist()
    [0.0, 2.0]

    References
    ----------
    Yu et al., Language Models are Super Mario, arXiv 2311.03099. Instead of dividing by 1 - p,
    mergekit rescales each tensor to keep its sum of magnitudes.
    """

    def merge(name: str, layer: sparse.Layer) -> torch.Tensor:
        thinned: list[torch.Tensor] = []
        for task, change in layer.items():
            # Seeded by names, not by position, so that the order of tasks makes no difference.
            survivors = sparse.dropped(
                change,
                1 - p,  # the probability of keeping an entry
                seed=seed,
                task=task,
                name=name,
            )
            thinned.append(survivors)
        merged = sparse.together(torch.stack(thinned), then)
        return scale * merged

    return sparse.each_layer(vectors, merge)
