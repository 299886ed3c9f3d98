"""ROUGE-L: the longest common subsequence of words."""

import functools
from collections.abc import Sequence
from typing import Any

from perdure.evaluation.task_score import References, best, of, optional


@of("text", package="rouge_score")
def rouge_l(answers: Sequence[str], references: References) -> float:
    """Return the mean F-measure of the longest common subsequence of stemmed words.

    Each answer is compared with the correct answer that gives the highest value. This is
    Google's `rouge_score` with `use_stemmer=True`, as used for Super-NaturalInstructions,
    SAPT and GainLoRA.

    Raises
    ------
    InputError
        `rouge-score` is not installed.

    References
    ----------
    Lin, ROUGE: a package for automatic evaluation of summaries, 2004.

    Examples
    --------
    >>> round(rouge_l(["the cats sat"], [["a cat sat down"]]), 4)  # 2 · 2 / (3 + 4)
    0.5714
    """
    scorer = _scorer()

    def value(answer: str, right: str) -> float:
        return scorer.score(right, answer)["rougeL"].fmeasure

    return best(value, answers, references)


@functools.cache
def _scorer() -> Any:
    rouge_score = optional("rouge_score.rouge_scorer", "rouge_l", "rouge-score")
    return rouge_score.RougeScorer(["rougeL"], use_stemmer=True)
