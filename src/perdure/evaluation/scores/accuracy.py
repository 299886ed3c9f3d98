"""The share of answers that equal a right one."""

from collections.abc import Sequence

from perdure.evaluation.task_score import References, best, of


@of("classes", "text")
def accuracy(answers: Sequence[str], references: References) -> float:
    """Return the share of answers that equal a right one, but for white space around them.

    Examples
    --------
    >>> accuracy(["yes", "No"], [["yes"], ["no"]])
    0.5
    """
    return best(lambda answer, right: float(answer.strip() == right.strip()), answers, references)
