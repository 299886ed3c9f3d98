"""The share of characters that need not be inserted, deleted or replaced."""

from collections.abc import Sequence

from perdure.evaluation.task_score import References, best, of


@of("text")
def edit_similarity(answers: Sequence[str], references: References) -> float:
    """Return the mean over examples of 1 - edit distance / length of the longer text.

    Each answer is compared with its closest correct answer. The distance is the
    Levenshtein distance in characters. TRACE compares code by `fuzz.ratio`, a different
    formula: `code_similarity`.

    Examples
    --------
    >>> edit_similarity(["kitten"], [["sitting", "dog"]])  # 1 - 3 / 7
    0.571...
    """
    return best(_similarity, answers, references)


def _similarity(answer: str, right: str) -> float:
    longer = max(len(answer), len(right))
    return 1 - _distance(answer, right) / longer if longer else 1.0


def _distance(left: str, right: str) -> int:
    """Return the edit distance, computed row by row (Wagner & Fischer)."""
    row = list(range(len(right) + 1))
    for number, character in enumerate(left, start=1):
        before = row
        row = [number]
        for place, other in enumerate(right):
            replaced = before[place] + (character != other)
            row.append(min(replaced, before[place + 1] + 1, row[place] + 1))
    return row[-1]
