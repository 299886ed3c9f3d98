"""RegMean (Jin et al. 2023): the change whose outputs are nearest to those of every task on its own inputs."""

from collections.abc import Mapping
from typing import Annotated

import torch
from annotated_types import Ge, Le

from perdure.errors import InputError
from perdure.merging.rule import nature
from perdure.rules.parts.spectral import Changes, each_matrix, summed, times
from perdure.vectors.task_vector import Entry, TaskVector


@nature(
    "order-free", state="sums over tasks of tau_t C_t and of C_t", needs=["inputs"], layerwise=True
)
def regmean(
    vectors: dict[str, TaskVector],
    inputs: Mapping[str, Mapping[str, torch.Tensor]],
    *,
    alpha: Annotated[float, Ge(0), Le(1)] = 0.9,
) -> TaskVector:
    """Theta = Theta_pre + (sum of tau_t C_t) (sum of C_t)⁺: the least squares of sum over t of E|tau x - tau_t x|².

    C_t = E[x xᵀ] over the inputs x of the layer on task t, with what is off its diagonal scaled by alpha. LoRA's stay
    in factors: [B_1 … B_n] [A_1 C_1 G⁺; …], with G the sum of the C_t. What is no matrix is averaged.

    Parameters
    ----------
    inputs
        C_t by task and layer, in × in.
    alpha
        In [0, 1]; below 1 it regularises, 0 is a mean weighted by each input's power.

    Examples
    --------
    >>> one, two = (TaskVector({"w": torch.tensor([[x]])}) for x in (1.0, 4.0))
    >>> inputs = {"a": {"w": torch.tensor([[2.0]])}, "b": {"w": torch.tensor([[1.0]])}}
    >>> regmean({"a": one, "b": two}, inputs).dense("w").tolist()
    [[2.0]]

    References
    ----------
    Jin et al., Dataless Knowledge Fusion, arXiv 2212.09849. It merges weights, which is the same: (sum of W C_t) G⁺ =
    W for the pre-trained W.
    """

    def covariance(task: str, name: str, width: int) -> torch.Tensor:
        given = inputs.get(task, {}).get(name)
        if given is None:
            raise InputError(
                f"`regmean` has no statistics of the inputs of `{name}` for task `{task}`."
            )
        if given.shape != (width, width):
            raise InputError(
                f"The inputs of `{name}` for `{task}` need {(width, width)}, got {tuple(given.shape)}."
            )
        return alpha * given.double() + (1 - alpha) * given.double().diag().diag()

    def merge(name: str, changes: Changes) -> Entry:
        width = next(iter(changes.values())).shape[1]
        C = {task: covariance(task, name, width) for task in vectors}
        tolerance = width * max(torch.finfo(inputs[task][name].dtype).eps for task in vectors)
        inverse = torch.linalg.pinv(
            torch.stack(list(C.values())).sum(0), rtol=tolerance, hermitian=True
        )
        return summed([times(change, C[task] @ inverse) for task, change in changes.items()])

    return each_matrix(vectors, merge)
