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
    """Theta = Theta_pre + scale · combination of m_t ⊙ tau_t / (1 - p).

    Each entry of m_t is 0 with probability p, and 1 otherwise: the expectation is unchanged. Which
    entries are dropped depends only on the seed and on the names of the task and the layer, not on
    the order or the number of tasks.

    Parameters
    ----------
    p
        The share of entries that is dropped, in [0, 1). The paper drops 0.9 and more of large
        language models.
    scale
        lambda.
    then
        `sum`, `average`, or `ties`: elect signs and take the mean of what agrees, without
        trimming.
    seed
        Seed for the entries that are dropped.

    Examples
    --------
    >>> vectors = {"a": TaskVector({"w": torch.ones(4)})}
    >>> dare(vectors, p=0.5, seed=1).dense("w").unique().tolist()
    [0.0, 2.0]

    References
    ----------
    Yu et al., Language Models are Super Mario, arXiv 2311.03099. mergekit's rescaling keeps the sum
    of magnitudes of each tensor instead of dividing by 1 - p.
    """

    def merge(name: str, layer: sparse.Layer) -> torch.Tensor:
        thinned: list[torch.Tensor] = []
        for task, change in layer.items():
            # Seeded by names, not by position: in another order the same entries are dropped.
            survivors = sparse.dropped(
                change,
                1 - p,  # the probability to keep an entry
                seed=seed,
                task=task,
                name=name,
            )
            thinned.append(survivors)
        merged = sparse.together(torch.stack(thinned), then)
        return scale * merged

    return sparse.each_layer(vectors, merge)
