"""Model Breadcrumbs (Davari & Belilovsky 2024): neither the smallest changes nor the outliers."""

from typing import Annotated

import torch
from annotated_types import Ge, Lt

from perdure.errors import InputError
from perdure.merging.rule import nature
from perdure.rules.parts import sparse
from perdure.vectors.task_vector import TaskVector


def _check(beta: float, gamma: float) -> None:
    if not beta < gamma <= 1:
        raise InputError(f"`gamma` must be above `beta` and at most 1, got `{gamma}` and `{beta}`.")


@nature("order-free", state="one task vector", layerwise=True, check=_check)
def breadcrumbs(
    vectors: dict[str, TaskVector],
    *,
    beta: Annotated[float, Ge(0), Lt(1)] = 0.9,
    gamma: float = 0.99,
    scale: float = 0.3,
) -> TaskVector:
    """Theta = Theta_pre + scale · sum of m_t ⊙ tau_t, with m_t = 1 between two quantiles of each layer's magnitudes.

    Parameters
    ----------
    beta
        The share of least magnitude that is set to zero, in each layer of each task.
    gamma
        Above this quantile, in (beta, 1], magnitudes are outliers, and set to zero too.
    scale
        lambda; for 8 tasks values about 0.3 are usual, as for task arithmetic.

    Examples
    --------
    >>> one = {"a": TaskVector({"w": torch.tensor([1.0, -2.0, 3.0, 40.0])})}
    >>> breadcrumbs(one, beta=0.25, gamma=0.75, scale=1.0).dense("w").tolist()
    [0.0, -2.0, 3.0, 0.0]

    References
    ----------
    Davari & Belilovsky, Model Breadcrumbs, arXiv 2312.06795. Its code takes the quantiles of each row of a matrix, and
    not of the layer; mergekit takes them of the tensor, as we do.
    """

    def masked(change: torch.Tensor) -> torch.Tensor:
        order = change.abs().flatten().argsort(stable=True)
        middle = order[round(beta * len(order)) : round(gamma * len(order))]
        return (
            torch.zeros_like(change)
            .flatten()
            .index_copy(0, middle, change.flatten()[middle])
            .view_as(change)
        )

    return sparse.each_layer(
        vectors,
        lambda name, layer: (
            scale * torch.stack([masked(change) for change in layer.values()]).sum(0)
        ),
    )
