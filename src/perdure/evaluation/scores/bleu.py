"""BLEU over all answers together, as sacrebleu computes it."""

from collections.abc import Sequence

from perdure.evaluation.task_score import References, of, optional


@of("text", package="sacrebleu")
def bleu(answers: Sequence[str], references: References) -> float:
    """Return sacrebleu's corpus BLEU divided by 100, which is not a mean over examples.

    Raises
    ------
    InputError
        `sacrebleu` is not installed.

    References
    ----------
    Post, A call for clarity in reporting BLEU scores, arXiv 1804.08771.

    Examples
    --------
    >>> bleu(["the cat sat on the mat"], [["the cat sat on the mat", "a cat sat there"]])
    1.0
    """
    sacrebleu = optional("sacrebleu.metrics.bleu", "bleu", "sacrebleu")
    # sacrebleu takes a list of all first references, a list of all second references, and
    # so on; an example with fewer references has None there.
    most = max(len(right) for right in references)
    streams = []
    for number in range(most):
        streams.append([right[number] if number < len(right) else None for right in references])
    return round(sacrebleu.BLEU().corpus_score(list(answers), streams).score / 100, 6)
