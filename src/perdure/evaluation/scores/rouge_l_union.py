"""ROUGE-L over sentences: the different words of their longest common subsequences."""

from collections.abc import Sequence

from perdure.evaluation.subsequences import lengths
from perdure.evaluation.task_score import References, best, of


@of("text")
def rouge_l_union(answers: Sequence[str], references: References) -> float:
    """Return the mean F of the different words that common subsequences of sentences cover.

    This is ROUGE-L of the package `rouge`, by which TRACE measures MeetingBank. A full
    stop ends a sentence, and white space ends a word; words keep their case, endings and
    punctuation. A word is covered if it is in the longest common subsequence of a
    sentence of the answer and one of the right answer. F = 2PR / (P + R + 1e-8), where P
    is the share of the answer's different words that are covered, and R that of the right
    answer's. An answer without a sentence counts as 0.

    `rouge_l` is that of google's package, which compares whole texts and stems words.

    References
    ----------
    Lin, ROUGE: a package for automatic evaluation of summaries, 2004; Wang et al., TRACE, arXiv
    2310.06762.

    Examples
    --------
    >>> round(rouge_l_union(["the cats sat. a dog"], [["the cat sat. dog"]]), 4)  # 2 · 3 / (5 + 4)
    0.6667
    """
    return best(_f, answers, references)


def _f(answer: str, right: str) -> float:
    sentences = _sentences(answer)
    right_sentences = _sentences(right)
    covered: set[str] = set()
    for sentence in sentences:
        for right_sentence in right_sentences:
            covered |= _common(sentence, right_sentence)
    if not covered:
        return 0.0
    precision = len(covered) / len(set().union(*sentences))
    recall = len(covered) / len(set().union(*right_sentences))
    return 2 * precision * recall / (precision + recall + 1e-8)


def _sentences(text: str) -> list[list[str]]:
    """Return the words of each sentence."""
    # As in `rouge`, white space between two full stops is a sentence with one empty word.
    return [sentence.split() or [""] for sentence in text.split(".") if sentence]


def _common(left: Sequence[str], right: Sequence[str]) -> set[str]:
    """Return the different words of a longest common subsequence."""
    table = lengths(left, right)
    words: set[str] = set()
    # Backwards from the end. There may be several subsequences of this length: that of
    # the package `rouge` leaves out a word of the right sentence where it can.
    i = len(left)
    j = len(right)
    while i and j:
        if left[i - 1] == right[j - 1]:
            words.add(left[i - 1])
            i -= 1
            j -= 1
        elif table.at(i - 1, j) > table.at(i, j - 1):
            i -= 1
        else:
            j -= 1
    return words
