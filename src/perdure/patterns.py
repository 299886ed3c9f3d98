"""Regular expressions from a recipe or an adapter's configuration, matched in bounded time.

A short pattern can keep `re` busy for centuries, and whoever wrote the file may have meant it to.
`regex`, which transformers needs anyway, matches the same patterns and stops when asked to.
"""

import re
import time
from collections.abc import Sequence

import regex

from perdure.errors import InputError

LONGEST = 10_000  # characters: one that lists every layer of a large model has about half of that
SECONDS = 2.0  # for all names together: patterns that people write need milliseconds for thousands of layers


def matching(pattern: str, names: Sequence[str], where: str) -> list[str]:
    """Return those of the names that a regular expression matches from start to end, in their order.

    Parameters
    ----------
    where
        The setting or the file that holds the pattern, for the error.

    Examples
    --------
    >>> matching(r".*\\.(query|value)", ["layer.0.query", "layer.0.key"], "`target_modules`")
    ['layer.0.query']

    Raises
    ------
    InputError
        It is no regular expression, is too long, or takes too much time.
    """
    if len(pattern) > LONGEST:
        raise InputError(f"{where} is a regular expression of {len(pattern)} characters; at most {LONGEST} are read.")
    end = time.monotonic() + SECONDS
    try:
        re.compile(pattern)  # `regex` has recursion, which needs memory without bound, and `re` refuses it
        compiled = regex.compile(pattern)
        return [name for name in names if compiled.fullmatch(name, timeout=_left(end))]
    except TimeoutError as error:
        raise InputError(
            f"{where}: to match the regular expression `{pattern[:200]}` takes more than {SECONDS:g} seconds. "
            "Write it without repetitions inside of repetitions, or list the names."
        ) from error
    except (re.error, regex.error, RecursionError, OverflowError) as error:
        raise InputError(f"{where}: `{pattern[:200]}` is not a regular expression ({error}).") from error


def _left(end: float) -> float:
    """Return the seconds that are left, which for `regex` must be more than none."""
    left = end - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left
