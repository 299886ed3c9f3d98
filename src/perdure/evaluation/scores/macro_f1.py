"""F1 of each class, averaged over classes: a rare class counts as much as a common one."""

from collections.abc import Sequence

from perdure.evaluation.task_score import References, of


@of("classes")
def macro_f1(answers: Sequence[str], references: References) -> float:
    """Return the mean over classes of 2 · correct / (times answered + times true).

    The true class of an example is its first correct answer. As in scikit-learn, a class
    that is neither true nor answered for any example is ignored, and a class that is only
    answered counts as 0.

    Examples
    --------
    >>> macro_f1(["a", "a", "b"], [["a"], ["b"], ["b"]])  # both classes: 2 · 1 / 3
    0.666...
    """
    true = [right[0] for right in references]
    classes = sorted({*true, *answers})
    total = 0.0
    for name in classes:
        right = sum(a == name == t for a, t in zip(answers, true, strict=True))
        total += 2 * right / (list(answers).count(name) + true.count(name))
    return total / len(classes)
