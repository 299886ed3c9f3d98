"""SMILE: a sparse mixture of low-rank experts, routed by their own singular directions.

Nothing is trained.
"""

from perdure.errors import InputError
from perdure.merging.rule import nature
from perdure.models.mixture import Mixture
from perdure.vectors.task_vector import TaskVector


def _check(top_k: int, gate_rank: int, expert_rank: int | None) -> None:
    settings = {
        "top_k": top_k,
        "gate_rank": gate_rank,
        "expert_rank": expert_rank,
    }
    for name, value in settings.items():
        # A mixture with gate_rank 0 has no gate: it is the rule `routed`.
        if value is not None and value < 1:
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
    """y = W0 x + sum over t of p_t(x) ΔW_t x, with p the softmax of ‖V_tᵀ x‖ per token and layer.

    V_t are the leading right singular vectors of ΔW_t, not scaled by singular values. The
    rule needs no data, no training and no task posterior. An expert is exact for LoRA, whose
    decomposition is small.

    Parameters
    ----------
    top_k
        The number of experts that act on a token; their weights are made to add up to 1. One was
        best in the paper's tables.
    gate_rank
        The number of directions of each expert that the gate reads. At full rank all gates read
        nearly the same.
    expert_rank
        The number of leading directions of each expert that act; by default all.

    Examples
    --------
    >>> import torch
    >>> from perdure.vectors.task_vector import LowRank
    >>> layer = LowRank(torch.ones(3, 1), torch.ones(1, 2))
    >>> mixture = smile({task: TaskVector({"w": layer}) for task in "ab"}, gate_rank=1)
    >>> list(mixture.experts), list(mixture.without_expert("a").experts)
    (['a', 'b'], ['b'])

    References
    ----------
    Tang et al., SMILE: Zero-Shot Sparse Mixture of Low-Rank Experts Construction From Pre-Trained
    Foundation Models, arXiv 2408.10174. Its public code changes the fine-tuned models that it is
    given; this does not.
    """
    return Mixture(
        vectors,
        gate_rank=gate_rank,
        top_k=top_k,
        expert_rank=expert_rank,
    )
