"""Numbers from the accuracy matrix R: R[i, j] is the score on task j after learning task i (Lopez-Paz & Ranzato 2017).

Rows and columns count from 0 to T - 1. Scores of tasks not yet learned may be missing (nan), where a metric does not
need them. Every definition states its divisor, because published ones differ.
"""

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray


def average_accuracy(R: Float[ndarray, "steps tasks"]) -> float:
    """AA = (1/T) sum over j of R[T-1, j]: the mean over all tasks after the last one.

    Examples
    --------
    >>> average_accuracy(np.array([[0.9, np.nan], [0.5, 0.7]]))
    0.6
    """
    return float(R[-1].mean())


def average_incremental_accuracy(R: Float[ndarray, "steps tasks"]) -> float:
    """AIA = (1/T) sum over i of (1/(i+1)) sum over j <= i of R[i, j]: over steps, the mean over tasks seen.

    Examples
    --------
    >>> average_incremental_accuracy(np.array([[0.9, np.nan], [0.5, 0.7]]))
    0.75
    """
    return float(np.mean([R[i, : i + 1].mean() for i in range(len(R))]))


def backward_transfer(R: Float[ndarray, "steps tasks"]) -> float:
    """BWT = (1/(T-1)) sum over j < T-1 of (R[T-1, j] - R[j, j]); negative: something was forgotten.

    It is nan for one task. Some code divides by T instead, which counts the last task's zero.

    Examples
    --------
    >>> round(backward_transfer(np.array([[0.9, np.nan], [0.5, 0.7]])), 10)
    -0.4
    """
    learned = np.diag(R)
    return float((R[-1] - learned)[:-1].mean()) if len(R) > 1 else float("nan")


def forward_transfer(
    R: Float[ndarray, "steps tasks"], zero_shot: Float[ndarray, " tasks"]
) -> float:
    """FWT = (1/(T-1)) sum over j >= 1 of (R[j-1, j] - b_j), b the scores before anything was learned.

    It is nan for one task.

    With a head per task, the head of a task to come is untrained: FWT is then near zero with the task given. Without
    the task, a class that no task seen has is never predicted, while b is measured with untrained heads of all tasks:
    FWT then says something only where classes are shared between tasks (scenario `domain`).

    Examples
    --------
    >>> round(forward_transfer(np.array([[0.9, 0.6], [0.5, 0.7]]), np.array([0.5, 0.5])), 10)
    0.1
    """
    ahead = np.diag(R, k=1)
    return float((ahead - zero_shot[1:]).mean()) if len(R) > 1 else float("nan")


def forgetting(R: Float[ndarray, "steps tasks"]) -> float:
    """F = (1/(T-1)) sum over j < T-1 of (max over j <= i < T-1 of R[i, j], minus R[T-1, j]).

    It is nan for one task.

    Chaudhry et al. 2018: the best score a task ever had, against the last.

    Examples
    --------
    >>> round(forgetting(np.array([[0.9, np.nan], [0.5, 0.7]])), 10)
    0.4
    """
    last = len(R) - 1
    if last < 1:
        return float("nan")
    return float(np.mean([R[j:last, j].max() - R[last, j] for j in range(last)]))


def standard_error(scores: Float[ndarray, " tasks"], examples: Int[ndarray, " tasks"]) -> float:
    """SE = (1/T) sqrt(sum over j of p_j (1 - p_j) / n_j): how far chance in the test examples moves a mean accuracy.

    p_j is the share of the n_j test examples of task j that was answered right; the examples are taken as independent.

    Examples
    --------
    >>> standard_error(np.array([0.5, 0.8]), np.array([100, 64]))
    0.0353553...
    """
    return float(np.sqrt((scores * (1 - scores) / examples).sum()) / len(scores))


def summary(
    R: Float[ndarray, "steps tasks"], zero_shot: Float[ndarray, " tasks"] | None = None
) -> dict[str, float]:
    """All metrics of a matrix by name; `forward_transfer` where the scores before learning are known."""
    values = {
        "average_accuracy": average_accuracy(R),
        "average_incremental_accuracy": average_incremental_accuracy(R),
        "backward_transfer": backward_transfer(R),
        "forgetting": forgetting(R),
    }
    if zero_shot is not None:
        values["forward_transfer"] = forward_transfer(R, zero_shot)
    return values
