"""The share of answers that begin with the character of a right one."""

from collections.abc import Sequence

from perdure.evaluation.task_score import References, best, of


@of("text")
def first_character(answers: Sequence[str], references: References) -> float:
    """Return the share of answers whose first character is that of a right answer.

    It is for answers such as `A` with an explanation behind it, as TRACE measures
    ScienceQA. White space before the answer does not count, and an empty answer is wrong.

    References
    ----------
    Wang et al., TRACE, arXiv 2310.06762.

    Examples
    --------
    >>> first_character(["B\\nBecause it melts", "The answer is A"], [["B\\nIce melts"], ["A"]])
    0.5
    """
    return best(_same_beginning, answers, references)


def _same_beginning(answer: str, right: str) -> float:
    answer = answer.strip()
    right = right.strip()
    if not answer or not right:
        return 0.0
    return float(answer[0] == right[0])
