"""F1 of the words shared by an answer and a correct answer, as defined for SQuAD."""

from collections import Counter
from collections.abc import Sequence

from perdure.evaluation.scores.exact_match import normalized
from perdure.evaluation.task_score import References, best, of


@of("text")
def token_f1(answers: Sequence[str], references: References) -> float:
    """Return the mean F1 between the normalised words of each answer and its best correct answer.

    F1 = 2 · shared / (words of the answer + words of the correct answer). Two texts that
    are both empty after normalisation are equal, so their F1 is 1.

    References
    ----------
    Rajpurkar et al., SQuAD, arXiv 1606.05250.

    Examples
    --------
    >>> token_f1(["a big red dog"], [["the red dog", "cat"]])  # 2 · 2 / (3 + 2)
    0.8
    """
    return best(_f1, answers, references)


def _f1(answer: str, right: str) -> float:
    given, wished = Counter(normalized(answer).split()), Counter(normalized(right).split())
    shared = (given & wished).total()
    words = given.total() + wished.total()
    return 2 * shared / words if words else 1.0
