"""DARE (Yu et al. 2024): drop entries at random, rescale the rest, and combine the results."""

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

    Theta = Theta_pre + scale · combination of m_t ⊙ tau_t / (1 - p). Each entry of the
    mask m_t is 0 with probability p and 1 otherwise, so the expected value of m_t ⊙ tau_t
    / (1 - p) is tau_t. The masks depend on the seed, the task name and the layer name,
    but not on the order or the number of tasks.

    Parameters
    ----------
    p
        The probability of dropping an entry, in [0, 1). The paper uses 0.9 or more for
        large language models.
    scale
        The factor by which the combined task vector is multiplied.
    then
        The way to combine the results: `sum`, `average`, or `ties`, which elects signs
        and averages the entries that agree, without trimming.
    seed
        The random seed for the masks.

    Examples
    --------
    >>> vectors = {"a": TaskVector({"w": torch.ones(4)})}
    >>> dare(vectors, p=0.5, seed=1).dense("w").unique().tolist()
    [0.0, 2.0]

    References
    ----------
    Yu et al., Language Models are Super Mario, arXiv 2311.03099. Instead of dividing by 1 - p,
    mergekit rescales each tensor to preserve the sum of its magnitudes.
    """

    def merge(name: str, layer: sparse.Layer) -> torch.Tensor:
        thinned: list[torch.Tensor] = []
        for task, change in layer.items():
            # Seed by name, not by position, so that the order of tasks makes no difference.
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
