"""Metrics computed from the accuracy matrix R (Lopez-Paz & Ranzato 2017).

R[i, j] is the score on task j after learning task i; rows and columns are counted from 0.
Scores of tasks not yet learned may be missing (nan) if a metric does not need them. Each
definition states its divisor, because published definitions differ.
"""

from collections.abc import Mapping

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray

CALIBRATION_ERROR = "calibration_error"
"""The name of the calibration error in the column `metric` of `scores.csv`."""
GENERAL = "general:"
"""The prefix in the column `task` of `scores.csv` for values that belong to no learned task.

The name of a task cannot begin with it.
"""
UNKNOWN = "unknown:"
"""The prefix in the column `task` of `scores.csv` for the scores of inputs that belong to no task.

The name of a task cannot begin with it, either.
"""


def is_score(row: Mapping[str, object]) -> bool:
    """Return True if a row of `scores.csv` is the score of a task, and therefore part of R.

    Examples
    --------
    >>> is_score({"task": "news", "metric": "rouge_l"})
    True
    >>> is_score({"task": "general:text", "metric": "cross_entropy"})
    False
    """
    beside = row["metric"] == CALIBRATION_ERROR
    return not beside and not str(row["task"]).startswith((GENERAL, UNKNOWN))


def average_accuracy(R: Float[ndarray, "steps tasks"]) -> float:
    """AA = (1/T) sum over j of R[T-1, j]: the mean score of all tasks after the last one.

    Examples
    --------
    >>> average_accuracy(np.array([[0.9, np.nan], [0.5, 0.7]]))
    0.6
    """
    return float(R[-1].mean())


def average_incremental_accuracy(R: Float[ndarray, "steps tasks"]) -> float:
    """AIA = (1/T) sum over i of (1/(i+1)) sum over j <= i of R[i, j].

    This is the mean, over all steps, of the mean score of the tasks learned so far.

    Examples
    --------
    >>> average_incremental_accuracy(np.array([[0.9, np.nan], [0.5, 0.7]]))
    0.75
    """
    per_step: list[float] = []
    for i in range(len(R)):
        learned_so_far = R[i, : i + 1]  # the rest may be nan
        per_step.append(learned_so_far.mean())
    return float(np.mean(per_step))


def backward_transfer(R: Float[ndarray, "steps tasks"]) -> float:
    """BWT = (1/(T-1)) sum over j < T-1 of (R[T-1, j] - R[j, j]); negative means forgetting.

    BWT is nan for a single task. Some code divides by T instead, which includes the last
    task's difference of zero.

    Examples
    --------
    >>> round(backward_transfer(np.array([[0.9, np.nan], [0.5, 0.7]])), 10)
    -0.4
    """
    if len(R) < 2:
        return float("nan")
    just_learned = np.diag(R)
    gains = R[-1] - just_learned
    # The last task has had no time to change: its gain is 0 and is left out.
    return float(gains[:-1].mean())


def forward_transfer(
    R: Float[ndarray, "steps tasks"], zero_shot: Float[ndarray, " tasks"]
) -> float:
    """FWT = (1/(T-1)) sum over j >= 1 of (R[j-1, j] - b_j), b the scores before any learning.

    FWT is nan for a single task.

    If each task has a head, the head of a future task is untrained, so FWT is near zero
    when the task is given. When the task is not given, only classes of learned tasks are
    predicted, whereas b is measured with the untrained heads of all tasks. FWT is then
    meaningful only if tasks share classes (scenario `domain`).

    Examples
    --------
    >>> round(forward_transfer(np.array([[0.9, 0.6], [0.5, 0.7]]), np.array([0.5, 0.5])), 10)
    0.1
    """
    if len(R) < 2:
        return float("nan")
    just_before = np.diag(R, k=1)  # R[j-1, j]: the step before task j is learned
    gains = just_before - zero_shot[1:]
    return float(gains.mean())


def transfer_to_new(R: Float[ndarray, "steps tasks"], alone: Float[ndarray, " tasks"]) -> float:
    """FWT_a = (1/(T-1)) sum over j >= 1 of (R[j, j] - a_j), a the scores of tasks learned alone.

    It is nan for one task.

    a_j is the score on task j of a model that has learned only task j. The value is
    positive if earlier tasks help to learn later ones, and negative if the method leaves
    them too little to learn with. SAPT divides by T instead, which includes the first
    task's gain of 0. The score file of SAPT and GainLoRA calls the mean of the diagonal
    "forward transfer", with nothing subtracted.

    Examples
    --------
    >>> round(transfer_to_new(np.array([[0.9, np.nan], [0.5, 0.7]]), np.array([0.9, 0.8])), 10)
    -0.1
    """
    if len(R) < 2:
        return float("nan")
    gains = np.diag(R) - alone
    # Nothing was learned before the first task, so its gain is 0 but for chance.
    return float(gains[1:].mean())


def gap_reduction(ours: float, best_other: float, upper_bound: float) -> float:
    """GR = (ours - best other) / (upper bound - best other), the share of the gap that is closed.

    It is nan if the best other method reaches the upper bound: there is no gap then.

    Parameters
    ----------
    ours, best_other
        The average accuracies of the method, and of the best method to compare it with.
    upper_bound
        The average accuracy of each task's own adapter with the task given, or of joint training.

    References
    ----------
    The abstract of arXiv 2502.10966 claims 75.60 %. This formula is our reading of it: the paper's
    body could not be obtained.

    Examples
    --------
    >>> round(gap_reduction(0.78, 0.72, 0.80), 10)
    0.75
    """
    gap = upper_bound - best_other
    return (ours - best_other) / gap if gap > 0 else float("nan")


def forgetting(R: Float[ndarray, "steps tasks"]) -> float:
    """F = (1/(T-1)) sum over j < T-1 of (max over j <= i < T-1 of R[i, j], minus R[T-1, j]).

    This is the mean, over all tasks but the last, of a task's best earlier score minus
    its final score (Chaudhry et al. 2018). F is nan for a single task.

    Examples
    --------
    >>> round(forgetting(np.array([[0.9, np.nan], [0.5, 0.7]])), 10)
    0.4
    """
    last = len(R) - 1
    if last < 1:
        return float("nan")
    drops: list[float] = []
    for j in range(last):
        best_before = R[j:last, j].max()  # from row j on: earlier scores are zero-shot
        drops.append(best_before - R[last, j])
    return float(np.mean(drops))


def standard_error(scores: Float[ndarray, " tasks"], examples: Int[ndarray, " tasks"]) -> float:
    """Return SE = (1/T) sqrt(sum over j of p_j (1 - p_j) / n_j), the error of a mean accuracy.

    It accounts for the random choice of test examples: p_j is the share of the n_j test
    examples of task j that were answered correctly, and the examples are assumed to be
    independent.

    Examples
    --------
    >>> standard_error(np.array([0.5, 0.8]), np.array([100, 64]))
    0.0353553...
    """
    variances = scores * (1 - scores) / examples  # of each task's accuracy: binomial
    return float(np.sqrt(variances.sum()) / len(scores))


def summary(
    R: Float[ndarray, "steps tasks"], zero_shot: Float[ndarray, " tasks"] | None = None
) -> dict[str, float]:
    """Return all metrics by name; `forward_transfer` is included only if `zero_shot` is given."""
    # A metric that is not defined is nan: reports show it as a dash.
    values = {
        "average_accuracy": average_accuracy(R),
        "average_incremental_accuracy": average_incremental_accuracy(R),
        "backward_transfer": backward_transfer(R),
        "forgetting": forgetting(R),
    }
    if zero_shot is not None:
        values["forward_transfer"] = forward_transfer(R, zero_shot)
    return values
