"""Numbers from the accuracy matrix R (Lopez-Paz & Ranzato 2017).

R[i, j] is the score on task j after learning task i; rows and columns count from 0. Scores of tasks
not yet learned may be missing (nan) if a metric does not need them. Every definition states its
divisor, because published ones differ.
"""

from collections.abc import Mapping

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray

CALIBRATION_ERROR = "calibration_error"
"""The name of the calibration error in `scores.csv`, beside a task's score."""
GENERAL = "general:"
"""The prefix in `scores.csv` for values that belong to no learned task; no task can have such a
name.
"""


def is_score(row: Mapping[str, object]) -> bool:
    """Return whether a row of `scores.csv` is a task's score, and so part of R.

    Examples
    --------
    >>> is_score({"task": "news", "metric": "rouge_l"})
    True
    >>> is_score({"task": "general:text", "metric": "cross_entropy"})
    False
    """
    beside = row["metric"] == CALIBRATION_ERROR
    return not beside and not str(row["task"]).startswith(GENERAL)


def average_accuracy(R: Float[ndarray, "steps tasks"]) -> float:
    """AA = (1/T) sum over j of R[T-1, j]: the mean over all tasks after the last one.

    Examples
    --------
    >>> average_accuracy(np.array([[0.9, np.nan], [0.5, 0.7]]))
    0.6
    """
    return float(R[-1].mean())


def average_incremental_accuracy(R: Float[ndarray, "steps tasks"]) -> float:
    """AIA = (1/T) sum over i of (1/(i+1)) sum over j <= i of R[i, j].

    It is the mean over steps of the mean over the tasks learned so far.

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

    It is nan for one task. Some code divides by T instead, which counts the last task's zero.

    Examples
    --------
    >>> round(backward_transfer(np.array([[0.9, np.nan], [0.5, 0.7]])), 10)
    -0.4
    """
    if len(R) < 2:
        return float("nan")
    just_learned = np.diag(R)
    gains = R[-1] - just_learned
    # The last task has had no time to change: its gain is 0 and does not count.
    return float(gains[:-1].mean())


def forward_transfer(
    R: Float[ndarray, "steps tasks"], zero_shot: Float[ndarray, " tasks"]
) -> float:
    """FWT = (1/(T-1)) sum over j >= 1 of (R[j-1, j] - b_j), b the scores before any learning.

    It is nan for one task.

    With a head per task, the head of a future task is untrained: with the task given, FWT is then
    near zero. Without the task, a class of no task learned so far is never predicted, while b is
    measured with untrained heads of all tasks: FWT is then meaningful only if tasks share classes
    (scenario `domain`).

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

    a_j is the score on task j of a model that has learned only task j. The value is positive if
    earlier tasks help to learn later ones, and negative if the method leaves them too little to
    learn with. The score file of SAPT and GainLoRA calls the mean of the diagonal "forward
    transfer", with nothing subtracted.

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

    It is nan for one task.

    Chaudhry et al. 2018: the best score that a task ever had, minus the last.

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
    """SE = (1/T) sqrt(sum over j of p_j (1 - p_j) / n_j), the error of a mean accuracy.

    It measures the chance in the test examples: p_j is the share of the n_j test examples of
    task j that was answered right, and the examples are taken as independent.

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
    """Return all metrics by name; `forward_transfer` only with `zero_shot` scores."""
    # Nan where a metric is not defined: the reports show a dash there.
    values = {
        "average_accuracy": average_accuracy(R),
        "average_incremental_accuracy": average_incremental_accuracy(R),
        "backward_transfer": backward_transfer(R),
        "forgetting": forgetting(R),
    }
    if zero_shot is not None:
        values["forward_transfer"] = forward_transfer(R, zero_shot)
    return values
