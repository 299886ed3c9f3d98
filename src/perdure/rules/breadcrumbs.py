"""Model Breadcrumbs (Davari & Belilovsky 2024): drop the smallest changes and the outliers."""

from typing import Annotated

import torch
from annotated_types import Ge, Lt

from perdure.errors import InputError
from perdure.merging.rule import nature
from perdure.rules.parts import sparse
from perdure.vectors.task_vector import TaskVector


def _check(beta: float, gamma: float) -> None:
    if not beta < gamma <= 1:
        given = f"`{gamma}` and `{beta}`"
        raise InputError(f"`gamma` must be above `beta` and at most 1, got {given}.")


@nature("order-free", state="one task vector", layerwise=True, check=_check)
def breadcrumbs(
    vectors: dict[str, TaskVector],
    *,
    beta: Annotated[float, Ge(0), Lt(1)] = 0.9,
    gamma: float = 0.99,
    scale: float = 0.3,
) -> TaskVector:
    """Sum the task vectors after setting their small entries and outliers to zero.

    Theta = Theta_pre + scale · sum of m_t ⊙ tau_t, where tau_t is the task vector of task
    t. The mask m_t is 1 for entries whose magnitude is between two quantiles of the
    layer, and 0 for all others.

    Parameters
    ----------
    beta
        The fraction of entries to set to zero in each layer of each task vector, starting
        with the smallest magnitudes.
    gamma
        The quantile, in (beta, 1], above which entries are outliers and also set to zero.
    scale
        The paper's lambda. For 8 tasks, values around 0.3 are common, as in task arithmetic.

    Examples
    --------
    >>> vectors = {"a": TaskVector({"w": torch.tensor([1.0, -2.0, 3.0, 40.0])})}
    >>> breadcrumbs(vectors, beta=0.25, gamma=0.75, scale=1.0).dense("w").tolist()
    [0.0, -2.0, 3.0, 0.0]

    References
    ----------
    Davari & Belilovsky, Model Breadcrumbs, arXiv 2312.06795. The authors' code computes the
    quantiles for each row of a matrix; this rule, like mergekit, computes them for each tensor.
    """

    def masked(change: torch.Tensor) -> torch.Tensor:
        flat = change.flatten()
        # Select by position in sorted order, not by value, so that ties do not affect the counts.
        order = flat.abs().argsort(stable=True)
        start = round(beta * len(order))
        stop = round(gamma * len(order))
        middle = order[start:stop]
        crumbs = torch.zeros_like(flat)
        crumbs[middle] = flat[middle]
        return crumbs.view_as(change)

    def merge(name: str, layer: sparse.Layer) -> torch.Tensor:
        changes = [masked(change) for change in layer.values()]
        stacked = torch.stack(changes)
        merged = stacked.sum(0)
        return scale * merged

    return sparse.each_layer(vectors, merge)
