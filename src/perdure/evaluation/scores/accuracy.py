"""The share of correct answers."""

from collections.abc import Sequence

from perdure.evaluation.task_score import References, best, of


@of("classes", "text")
def accuracy(answers: Sequence[str], references: References) -> float:
    """Return the share of answers that equal a correct answer, ignoring surrounding white space.

    Examples
    --------
    >>> accuracy(["yes", "No"], [["yes"], ["no"]])
    0.5
    """
    return best(lambda answer, right: float(answer.strip() == right.strip()), answers, references)
