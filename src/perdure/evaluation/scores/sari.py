"""SARI: what a simplification keeps, deletes and adds, compared with right simplifications."""

import functools
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from perdure.evaluation.task_score import References, of, optional

LONGEST = 4
"""The number of words of the longest n-grams."""

Grams = Counter[tuple[str, ...]]
"""The number of times that each n-gram occurs."""


@of("text", package="sacrebleu")
def sari(answers: Sequence[str], references: References, sources: Sequence[str]) -> float:
    """Return SARI divided by 100: the mean of (F_keep + P_delete + F_add) / 3.

    Each of the three is averaged over n-grams of one to four words. An answer keeps
    n-grams of the source, deletes some and adds others. P is the share of those that the
    right answers keep, delete or add, too; R is the share of theirs that the answer has;
    F = 2PR / (P + R). With several right answers, n-grams count in as many copies. 0/0 is
    1.

    Texts are put into lower case and split into words by sacrebleu (`13a`). This is the
    `sari` of Hugging Face's `evaluate`, which TRACE uses. The original code of Xu et al.
    has 0/0 = 0, and another recall of kept n-grams.

    Parameters
    ----------
    sources
        The prompts, with their instructions, as in TRACE.

    Raises
    ------
    InputError
        `sacrebleu` is not installed.

    References
    ----------
    Xu et al., Optimizing statistical machine translation for text simplification, 2016.

    Examples
    --------
    >>> sari(["small dog"], [["small"]], ["small cat"])  # `dog` was added wrongly: (1 + 1 + 0) / 3
    0.833...
    """
    total = 0.0
    for answer, right, source in zip(answers, references, sources, strict=True):
        total += _of_example(
            _words(answer),
            [_words(text) for text in right],
            _words(source),
        )
    return total / len(answers)


def _words(text: str) -> list[str]:
    # By single spaces, so that an empty text has one empty word, as in `evaluate`.
    return _tokenizer()(text.lower()).split(" ")


@functools.cache
def _tokenizer() -> Any:
    sacrebleu = optional("sacrebleu.tokenizers.tokenizer_13a", "sari", "sacrebleu")
    return sacrebleu.Tokenizer13a()


def _of_example(
    answer: Sequence[str], references: Sequence[Sequence[str]], source: Sequence[str]
) -> float:
    total = 0.0
    for length in range(1, LONGEST + 1):
        right: Grams = Counter()
        for reference in references:
            right += _grams(reference, length)
        # The right answers are counted together: so are as many copies of the other two.
        copies = len(references)
        of_answer = _grams(answer, length, copies)
        of_source = _grams(source, length, copies)
        total += _kept(of_answer, right, of_source)
        total += _deleted(of_answer, right, of_source)
        total += _added(of_answer, right, of_source)
    return total / (3 * LONGEST)


def _grams(words: Sequence[str], length: int, copies: int = 1) -> Grams:
    shifted = [words[start:] for start in range(length)]
    grams: Grams = Counter(zip(*shifted, strict=False))  # up to the end of the shortest
    if copies > 1:
        for gram in grams:
            grams[gram] *= copies
    return grams


def _kept(answer: Grams, right: Grams, source: Grams) -> float:
    """Return F of the n-grams of the source that are kept."""
    kept = source & answer
    rightly = kept & right
    to_keep = source & right
    recall = rightly.total() / to_keep.total() if to_keep else 1.0
    return _f(_mean_share(rightly, kept), recall)


def _deleted(answer: Grams, right: Grams, source: Grams) -> float:
    """Return the precision of the n-grams of the source that are deleted."""
    deleted = source - answer
    return _mean_share(deleted - right, deleted)


def _added(answer: Grams, right: Grams, source: Grams) -> float:
    """Return F of the different n-grams that are added."""
    added = answer.keys() - source.keys()
    to_add = right.keys() - source.keys()
    rightly = added & to_add
    return _f(_share(rightly, added), _share(rightly, to_add))


def _mean_share(some: Mapping[tuple[str, ...], int], counts: Grams) -> float:
    """Return the mean over n-grams of the share that is among `some`."""
    if not counts:
        return 1.0
    total = 0.0
    for gram, count in counts.items():
        total += some.get(gram, 0) / count
    return total / len(counts)


def _share(some: Collection[object], every: Collection[object]) -> float:
    return len(some) / len(every) if every else 1.0


def _f(precision: float, recall: float) -> float:
    both = precision + recall
    return 2 * precision * recall / both if both else 0.0
