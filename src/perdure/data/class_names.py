"""Functions to sort the class names in a label column and to detect labels that are not classes."""

import math
from collections import Counter
from collections.abc import Iterable, Sequence

MAX_FRACTIONS = 10
"""The maximum number of distinct fractions that count as classes; 0.5 to 5 stars are ten."""
WORDS_OF_A_TEXT = 5
LENGTH_OF_A_TEXT = 50  # characters: some languages write no spaces
MAX_SHOWN = 60  # characters of a label that a message shows


def in_order(names: Iterable[str]) -> list[str]:
    """Sort class names: first numbers by value, then all other names alphabetically.

    The order is the same in every process. `nan`, which cannot be compared with numbers,
    is sorted as text.

    Examples
    --------
    >>> in_order({"10", "nan", "9", "x", "1e1", "NaN"})
    ['9', '10', '1e1', 'NaN', 'nan', 'x']
    """
    return sorted(names, key=_sort_key)


def complaint(labels: Sequence[str], column: str) -> str | None:
    """Return an error message if the labels in a column do not look like classes, otherwise None.

    The labels may look like free text, or like numbers to be estimated, as in regression.

    Examples
    --------
    >>> print(complaint([f"{i / 8}" for i in range(30)], "score"))
    Column `score` contains 30 different numbers, such as `0.0` and `0.125`, ... `level 0.0`.
    >>> complaint(["0.5", "1.0", "1.5"] * 9, "stars"), complaint(["1", "2", "3"] * 9, "stars")
    (None, None)
    """
    counts = Counter(labels)
    # Class labels repeat, but one or two rows are too few to tell.
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
    """Shorten a label for use in a message."""
    return label if len(label) <= MAX_SHOWN else label[: MAX_SHOWN - 1] + "…"


def _look_like_quantities(numbers: Sequence[float], mostly_different: bool) -> bool:
    many = len(numbers) > MAX_FRACTIONS
    if any(number % 1 for number in numbers):
        return many or mostly_different
    # Classes that are numbered from 0 or 1 have no gaps. With only a few examples per
    # class, most of the numbers differ, but they are still not quantities.
    without_gaps = max(numbers) - min(numbers) < len(numbers)
    return many and mostly_different and not without_gaps


def _quantities(counts: Counter[str], column: str) -> str:
    first, second, *_ = map(shown, in_order(counts))
    return (
        f"Column `{column}` contains {len(counts)} different numbers, such as `{first}` and "
        f"`{second}`, which look like a quantity to be estimated; perdure learns classes. "
        "Divide the numbers into a few groups, such as `low` and `high`; if each number is a "
        f"separate class, write a word before it, such as `level {first}`."
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
    """Return a sort key that puts numbers first and breaks ties between equal numbers by name."""
    try:
        value = float(name)
    except ValueError:
        value = math.nan
    if math.isnan(value):
        return True, 0.0, name
    return False, value, name
