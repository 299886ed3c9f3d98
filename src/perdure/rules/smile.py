"""SMILE: a sparse mixture of low-rank experts, routed by the experts' singular vectors.

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
    """Mix the tasks' experts for each token and layer: y = W0 x + sum of p_t(x) ΔW_t x.

    The weights p_t(x) are the softmax of ‖V_tᵀ x‖ over the tasks t, where the columns of
    V_t are the leading right singular vectors of ΔW_t, not scaled by singular values. The
    rule needs no data, no training and no task posterior. By default, each expert is
    exactly the LoRA change of its task.

    Parameters
    ----------
    top_k
        The number of experts used for each token; their weights are normalised to sum to
        1. A single expert was best in the paper's tables.
    gate_rank
        The number of singular vectors of each expert that the gate uses. At full rank,
        the gate can hardly tell the experts apart.
    expert_rank
        The rank to which each expert is truncated; by default, experts keep their full rank.

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
    Foundation Models, arXiv 2408.10174. Unlike the authors' code, this rule leaves the
    fine-tuned models unchanged.
    """
    return Mixture(
        vectors,
        gate_rank=gate_rank,
        top_k=top_k,
        expert_rank=expert_rank,
    )
