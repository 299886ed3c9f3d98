"""The classes of a column of labels: their order, and labels that look like something else."""

import math
from collections import Counter
from collections.abc import Iterable, Sequence

MAX_FRACTIONS = 10
"""The largest number of different fractions that still count as classes: 0.5 to 5 stars are ten."""
WORDS_OF_A_TEXT = 5
LENGTH_OF_A_TEXT = 50  # characters: some languages write no spaces
MAX_SHOWN = 60  # characters of a label in a message


def in_order(names: Iterable[str]) -> list[str]:
    """Sort the names of classes: numbers by their value, then the others as texts.

    The order is the same in every process: `nan`, which cannot be compared with numbers, is sorted
    as text.

    Examples
    --------
    >>> in_order({"10", "nan", "9", "x", "1e1", "NaN"})
    ['9', '10', '1e1', 'NaN', 'nan', 'x']
    """
    return sorted(names, key=_sort_key)


def complaint(labels: Sequence[str], column: str) -> str | None:
    """Say what a column of labels looks like, if it does not look like classes.

    It may hold texts, or numbers to be estimated.

    Examples
    --------
    >>> print(complaint([f"{i / 8}" for i in range(30)], "score"))
    Column `score` holds 30 different numbers, such as `0.0` and `0.125`, ... `level 0.0`.
    >>> complaint(["0.5", "1.0", "1.5"] * 9, "stars"), complaint(["1", "2", "3"] * 9, "stars")
    (None, None)
    """
    counts = Counter(labels)
    # Classes repeat themselves, but one or two rows are too few to tell.
    mostly_different = len(counts) > len(labels) / 2 and len(labels) > 2
    numbers = []
    for name in counts:
        number = _number(name)
        if number is not None:
            numbers.append(number)
    if len(numbers) == len(counts):
        looks = _look_like_quantities(numbers, mostly_different)
        return _quantities(counts, column) if looks else None
    if not mostly_different:
        return None
    texts = [name for name in counts if _is_text(name)]
    if len(texts) > len(counts) / 2:
        return (
            f"Column `{column}` has {len(counts)} different values in {len(labels)} rows, such as "
            f"`{shown(texts[0])}`: these look like texts, not classes. "
            "Name the column with the class as `label`, or for a language model name this one as "
            "`answer`."
        )
    return None


def shown(label: str) -> str:
    """Cut a label for a message."""
    return label if len(label) <= MAX_SHOWN else label[: MAX_SHOWN - 1] + "…"


def _look_like_quantities(numbers: Sequence[float], mostly_different: bool) -> bool:
    many = len(numbers) > MAX_FRACTIONS
    if any(number % 1 for number in numbers):
        return many or mostly_different
    # Classes that are numbered from 0 or 1 have no gaps. With a few examples of each, most of the
    # numbers are different, but they are still no quantities.
    without_gaps = max(numbers) - min(numbers) < len(numbers)
    return many and mostly_different and not without_gaps


def _quantities(counts: Counter[str], column: str) -> str:
    first, second, *_ = map(shown, in_order(counts))
    return (
        f"Column `{column}` holds {len(counts)} different numbers, such as `{first}` and "
        f"`{second}`, which look like a quantity to be estimated; perdure learns classes. "
        "Put the numbers into a few groups, such as `low` and `high`; if each is a class of its "
        f"own, write a word before it, such as `level {first}`."
    )


def _is_text(name: str) -> bool:
    return len(name.split()) >= WORDS_OF_A_TEXT or len(name) >= LENGTH_OF_A_TEXT


def _number(name: str) -> float | None:
    try:
        value = float(name)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _sort_key(name: str) -> tuple[bool, float, str]:
    """Return a key that puts numbers first; the name itself decides between equal numbers."""
    try:
        value = float(name)
    except ValueError:
        value = math.nan
    if math.isnan(value):
        return True, 0.0, name
    return False, value, name
