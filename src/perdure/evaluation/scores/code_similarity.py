"""The similarity of lines of code whose literals are masked, as CodeXGLUE and TRACE measure it."""

import re
from collections.abc import Sequence

from perdure.evaluation.subsequences import lengths
from perdure.evaluation.task_score import References, best, of

# Py150 masks literals: `<NUM_LIT:4>` is a number that is common, `<NUM_LIT>` any other one.
RARE_LITERALS = {"<NUM_LIT>": "0", "<STR_LIT>": "", "<CHAR_LIT>": ""}
COMMON_LITERAL = re.compile(r"<(?:STR|NUM|CHAR)_LIT:(.*?)>", re.DOTALL)


@of("text")
def code_similarity(answers: Sequence[str], references: References) -> float:
    """Return the mean of 2 · common / (characters of the answer + characters of the right answer).

    The common characters are those of the longest common subsequence. Masked literals are
    written out first (`<NUM_LIT:4>` becomes 4, `<NUM_LIT>` 0, `<STR_LIT>` nothing). The
    value of each example is rounded to hundredths; it is 0 if either text is empty. This
    is the `fuzz.ratio` of fuzzywuzzy, divided by 100, where python-Levenshtein is
    installed. Without it, fuzzywuzzy uses `difflib`, which finds fewer common characters
    in some pairs.

    References
    ----------
    Lu et al., CodeXGLUE, arXiv 2102.04664; Wang et al., TRACE, arXiv 2310.06762.

    Examples
    --------
    >>> code_similarity(["return x"], [["return <NUM_LIT:1>"]])  # 2 · 7 / (8 + 8)
    0.88
    """
    return best(_similarity, answers, references)


def _similarity(answer: str, right: str) -> float:
    answer = _written_out(answer)
    right = _written_out(right)
    if not answer or not right:
        return 0.0
    characters = len(answer) + len(right)
    # By way of the distance: at a half, the last bit decides whether it is rounded up.
    distance = characters - 2 * lengths(answer, right).whole
    ratio = 1 - distance / characters
    return round(100 * ratio) / 100


def _written_out(code: str) -> str:
    """Return code with its masked literals written out."""
    for mask, literal in RARE_LITERALS.items():
        code = code.replace(mask, literal)
    return COMMON_LITERAL.sub(r"\1", code)
