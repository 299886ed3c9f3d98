"""DELLA (Deep et al. 2024): drop small entries more often than large ones, then merge."""

from typing import Annotated

import torch
from annotated_types import Ge, Lt

from perdure.errors import InputError
from perdure.merging.rule import nature
from perdure.rules.parts import sparse
from perdure.vectors.task_vector import TaskVector


def _check(p: float, epsilon: float) -> None:
    lowest = p - epsilon
    highest = p + epsilon
    if not 0 <= lowest <= highest < 1:
        raise InputError(
            f"`p` - `epsilon` and `p` + `epsilon` must be in [0, 1), got `{p}` and `{epsilon}`."
        )


@nature("order-free", state="n task vectors", layerwise=True, check=_check)
def della(
    vectors: dict[str, TaskVector],
    *,
    p: float = 0.3,
    epsilon: Annotated[float, Ge(0), Lt(0.5)] = 0.07,
    scale: float = 1.0,
    then: sparse.Then = "ties",
    seed: int = 0,
) -> TaskVector:
    """Drop random entries of each task vector, small ones more often, and combine the rest.

    Theta = Theta_pre + scale · combination of m_t ⊙ tau_t / (1 - p_t). Each entry of the mask
    m_t is 0 with probability p_t and 1 otherwise. Within each row (one neuron), p_t decreases
    in equal steps from p + epsilon for the smallest magnitude to p - epsilon for the largest.

    Parameters
    ----------
    p
        The average probability of dropping an entry.
    epsilon
        Half the range of the drop probabilities; p ± epsilon must be in [0, 1).
    scale
        The paper's lambda. The authors' example uses 1.1.
    then
        `ties` (as published): elect signs and average entries that agree; `sum`; or `average`.
    seed
        The random seed for the masks.

    Examples
    --------
    >>> vectors = {"a": TaskVector({"w": torch.tensor([[1.0, 3.0, 2.0]])})}
    >>> della(vectors, p=0.0, epsilon=0.0).dense("w").tolist()
    [[1.0, 3.0, 2.0]]

    References
    ----------
    Deep et al., DELLA-Merging, arXiv 2406.11617. Instead of dividing by 1 - p_t, mergekit
    rescales each tensor to preserve the sum of its magnitudes.
    """

    def merge(name: str, layer: sparse.Layer) -> torch.Tensor:
        thinned: list[torch.Tensor] = []
        for task, change in layer.items():
            # keep = 1 - p_t. `standing` is -1 for the smallest magnitude, 1 for the largest.
            keep = 1 - p + epsilon * sparse.standing(change)
            survivors = sparse.dropped(
                change,
                keep,
                seed=seed,
                task=task,
                name=name,
            )
            thinned.append(survivors)
        merged = sparse.together(torch.stack(thinned), then)
        return scale * merged

    return sparse.each_layer(vectors, merge)
