"""The share of answers that are correct after normalisation."""

import re
import string
from collections.abc import Sequence

from perdure.evaluation.task_score import References, best, of

ARTICLES = re.compile(r"\b(a|an|the)\b")
PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalized(text: str) -> str:
    """Return the text in lower case, without punctuation, articles or extra white space.

    Only ASCII punctuation and English articles are removed. This is the normalisation of
    SQuAD; Super-NaturalInstructions does not remove articles.

    Examples
    --------
    >>> normalized(" The  U.S.A., an answer! ")
    'usa answer'
    """
    without_punctuation = text.lower().translate(PUNCTUATION)
    return " ".join(ARTICLES.sub(" ", without_punctuation).split())


@of("classes", "text")
def exact_match(answers: Sequence[str], references: References) -> float:
    """Return the share of answers that equal a correct answer after both are normalised.

    References
    ----------
    Rajpurkar et al., SQuAD, arXiv 1606.05250.

    Examples
    --------
    >>> exact_match(["The Eiffel tower.", "Rome"], [["Eiffel Tower"], ["Paris", "Lyon"]])
    0.5
    """

    def equal(answer: str, right: str) -> float:
        return float(normalized(answer) == normalized(right))

    return best(equal, answers, references)
