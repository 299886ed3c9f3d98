"""The classes of a column of labels: their order, and labels that look like something else."""

import math
from collections import Counter
from collections.abc import Iterable, Sequence

MAX_FRACTIONS = 10
"""A column of numbers with fractions is taken for classes up to so many: half stars from 0.5 to 5 are ten."""
WORDS_OF_A_TEXT = 5
LENGTH_OF_A_TEXT = 50  # characters: some languages write no spaces
MAX_SHOWN = 60  # characters of a label in a message


def in_order(names: Iterable[str]) -> list[str]:
    """Sort the names of classes: numbers by their value, then the others as texts.

    The order is the same in every process: `nan`, which is neither less nor greater than a number, is a text.

    Examples
    --------
    >>> in_order({"10", "nan", "9", "x", "1e1", "NaN"})
    ['9', '10', '1e1', 'NaN', 'nan', 'x']
    """
    return sorted(names, key=_place)


def complaint(labels: Sequence[str], column: str) -> str | None:
    """Say what a column of labels looks like, if that is not classes: texts, or numbers to be estimated.

    Examples
    --------
    >>> print(complaint([f"{i / 8}" for i in range(30)], "score"))
    Column `score` holds 30 different numbers, such as `0.0` and `0.125`, ... `level 0.0`.
    >>> complaint(["0.5", "1.0", "1.5"] * 9, "stars"), complaint(["1", "2", "3", "4", "5"] * 9, "stars")
    (None, None)
    """
    counts = Counter(labels)
    # Classes repeat themselves.
    mostly_different = len(counts) > len(labels) / 2 and len(labels) > 2
    numbers = [value for value in map(_number, counts) if value is not None]
    if len(numbers) == len(counts):
        looks = _look_like_quantities(numbers, mostly_different)
        return _quantities(counts, column) if looks else None
    if not mostly_different:
        return None
    texts = [name for name in counts if _is_text(name)]
    if len(texts) > len(counts) / 2:
        return (
            f"Column `{column}` has {len(counts)} different values in {len(labels)} rows, such as "
            f"`{shown(texts[0])}`: these look like texts, not classes. Name the column with the class as `label`."
        )
    return None


def shown(label: str) -> str:
    """Cut a label for a message."""
    return label if len(label) <= MAX_SHOWN else label[: MAX_SHOWN - 1] + "…"


def _look_like_quantities(numbers: Sequence[float], mostly_different: bool) -> bool:
    many = len(numbers) > MAX_FRACTIONS
    if any(number % 1 for number in numbers):
        return many or mostly_different
    # A few examples of each of many classes, which are numbered, are no quantities.
    without_gaps = max(numbers) - min(numbers) < len(numbers)
    return many and mostly_different and not without_gaps


def _quantities(counts: Counter[str], column: str) -> str:
    examples = in_order(counts)
    return (
        f"Column `{column}` holds {len(counts)} different numbers, such as `{shown(examples[0])}` and "
        f"`{shown(examples[1])}`, which look like a quantity to be estimated; perdure learns classes. Put the numbers "
        f"into a few groups, such as `low` and `high`; if each is a class of its own, write a word before it, "
        f"such as `level {shown(examples[0])}`."
    )


def _is_text(name: str) -> bool:
    return len(name.split()) >= WORDS_OF_A_TEXT or len(name) >= LENGTH_OF_A_TEXT


def _number(name: str) -> float | None:
    try:
        value = float(name)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _place(name: str) -> tuple[bool, float, str]:
    try:
        value = float(name)
    except ValueError:
        value = math.nan
    if math.isnan(value):
        return True, 0.0, name
    return False, value, name
