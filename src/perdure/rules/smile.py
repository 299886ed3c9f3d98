"""SMILE: a sparse mixture of low-rank experts, routed by the experts' own singular directions, without training."""

from perdure.errors import InputError
from perdure.merging.rule import nature
from perdure.models.mixture import Mixture
from perdure.vectors.task_vector import TaskVector


def _check(top_k: int, gate_rank: int, expert_rank: int | None) -> None:
    for name, value in {"top_k": top_k, "gate_rank": gate_rank, "expert_rank": expert_rank}.items():
        if value is not None and value < 1:  # without a gate it is the rule `routed`
            raise InputError(f"`{name}` of `smile` must be at least 1, got {value}.")


@nature(
    "routed",
    state="n task vectors, and for each layer n gates of `gate_rank` directions",
    low_rank=True,
    check=_check,
)
def smile(
    vectors: dict[str, TaskVector],
    *,
    top_k: int = 1,
    gate_rank: int = 4,
    expert_rank: int | None = None,
) -> Mixture:
    """y = W0 x + sum over t of p_t(x) ΔW_t x, where p is the softmax of ‖V_tᵀ x‖, for each token and layer.

    V_t are the leading right singular vectors of ΔW_t, not scaled by singular values. Nothing else of the tasks is
    needed: no data, no training, no task posterior. An expert is exact for LoRA, whose decomposition is small.

    Parameters
    ----------
    top_k
        How many experts act on a token; their weights are made to add up to 1. One was best in the paper's tables.
    gate_rank
        How many directions of each expert the gate reads. At full rank all gates read nearly the same.
    expert_rank
        How many leading directions of each expert act; by default all.

    Examples
    --------
    >>> import torch
    >>> from perdure.vectors.task_vector import LowRank
    >>> vectors = {task: TaskVector({"w": LowRank(torch.ones(3, 1), torch.ones(1, 2))}) for task in "ab"}
    >>> mixture = smile(vectors, gate_rank=1)
    >>> list(mixture.experts), list(mixture.without_expert("a").experts)
    (['a', 'b'], ['b'])

    References
    ----------
    Tang et al., SMILE: Zero-Shot Sparse Mixture of Low-Rank Experts Construction From Pre-Trained Foundation Models,
    arXiv 2408.10174. Its public code changes the fine-tuned models that it is given; this does not.
    """
    return Mixture(vectors, gate_rank=gate_rank, top_k=top_k, expert_rank=expert_rank)
