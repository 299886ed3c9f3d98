"""RegMean (Jin et al. 2023): the change whose outputs are closest to those of all tasks."""

from collections.abc import Mapping
from typing import Annotated

import torch
from annotated_types import Ge, Le

from perdure.errors import InputError
from perdure.merging.rule import nature
from perdure.rules.parts.spectral import Changes, each_matrix, summed, times
from perdure.vectors.task_vector import Entry, TaskVector

Inputs = Mapping[str, Mapping[str, torch.Tensor]]


@nature("order-free", state="sums of tau_t C_t and of C_t", needs=["inputs"], layerwise=True)
def regmean(
    vectors: dict[str, TaskVector],
    inputs: Inputs,
    *,
    alpha: Annotated[float, Ge(0), Le(1)] = 0.9,
) -> TaskVector:
    """Keep each layer's outputs close to those of every task: tau = (sum of tau_t C_t) G⁺.

    This tau minimises the sum over tasks t of E|tau x - tau_t x|², where x is a layer
    input on task t. C_t is E[x xᵀ] with off-diagonal entries scaled by alpha, and G is
    the sum of all C_t. LoRA changes stay low-rank: [B_1 … B_n] [A_1 C_1 G⁺; …]. Layers
    that are not matrices are averaged.

    Parameters
    ----------
    inputs
        E[x xᵀ] by task and layer, of shape in × in.
    alpha
        In [0, 1]. Values below 1 regularise; 0 gives a mean weighted by each input's power.

    Examples
    --------
    >>> vectors = {t: TaskVector({"w": torch.tensor([[x]])}) for t, x in (("a", 1.0), ("b", 4.0))}
    >>> inputs = {"a": {"w": torch.tensor([[2.0]])}, "b": {"w": torch.tensor([[1.0]])}}
    >>> regmean(vectors, inputs).dense("w").tolist()
    [[2.0]]

    References
    ----------
    Jin et al., Dataless Knowledge Fusion, arXiv 2212.09849. The paper merges weights, which is
    equivalent: (sum of W C_t) G⁺ = W for the pre-trained W.
    """

    def covariance(task: str, name: str, width: int) -> torch.Tensor:
        given = inputs.get(task, {}).get(name)
        if given is None:
            missing = f"input statistics of `{name}` for task `{task}`"
            raise InputError(f"`regmean` has no {missing}.")
        if given.shape != (width, width):
            shapes = f"must have the shape {(width, width)}, not {tuple(given.shape)}"
            raise InputError(f"The input statistics of `{name}` for `{task}` {shapes}.")
        exact = given.double()
        # The diagonal is kept; alpha shrinks everything else.
        diagonal = exact.diag().diag()
        return alpha * exact + (1 - alpha) * diagonal

    def merge(name: str, changes: Changes) -> Entry:
        width = next(iter(changes.values())).shape[1]
        C: dict[str, torch.Tensor] = {}
        # Include C_t of tasks that lack the layer, because their change there is zero.
        for task in vectors:
            C[task] = covariance(task, name, width)
        G = torch.stack(list(C.values())).sum(0)
        # C_t is only as precise as the inputs: treat eigenvalues below their rounding as zero.
        rounding = max(torch.finfo(inputs[task][name].dtype).eps for task in vectors)
        inverse = torch.linalg.pinv(G, rtol=width * rounding, hermitian=True)
        weighted: list[Entry] = []
        for task, change in changes.items():
            weight = C[task] @ inverse
            weighted.append(times(change, weight))
        return summed(weighted)

    return each_matrix(vectors, merge)
