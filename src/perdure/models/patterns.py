"""Regular expressions from recipes and adapter configurations, matched within a time limit.

A short pattern can keep `re` busy for centuries, and whoever wrote the file may have
intended that. `regex`, which transformers requires anyway, matches the same patterns and
has a timeout.
"""

import re
import time
import warnings
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import regex

from perdure.errors import InputError, PerdureError

# In characters. A pattern that lists every layer of a large model has about half as many.
LONGEST = 10_000

# The time for all names together. Ordinary patterns need milliseconds for thousands of layers.
SECONDS = 2.0


@runtime_checkable
class Match(Protocol):
    """A match object of the `regex` package, declared here for type checkers."""

    def __getitem__(self, group: str | int, /) -> str: ...


class Patterns:
    """A matcher for the regular expressions of one recipe or file, with a shared time limit.

    Parameters
    ----------
    error
        The class of the exceptions to raise.

    Attributes
    ----------
    left
        The remaining time, in seconds.
    """

    def __init__(self, error: type[PerdureError] = InputError) -> None:
        self.left = SECONDS
        self._error = error
        self._compiled: dict[str, object] = {}

    def fullmatch(self, pattern: str, name: str, where: str) -> Match | None:
        """Match a pattern against an entire name, like `re.fullmatch`.

        Parameters
        ----------
        where
            The setting or file that contains the pattern, for error messages.

        Raises
        ------
        PerdureError
            The pattern is not a regular expression, is too long, or takes too long to
            match. The exception is an instance of the class given as `error`.
        """
        return self._timed("fullmatch", pattern, name, where)

    def match(self, pattern: str, name: str, where: str) -> Match | None:
        """Match a pattern at the start of a name, like `re.match`.

        It raises the same exceptions as `fullmatch`.
        """
        return self._timed("match", pattern, name, where)

    def _timed(self, method: str, pattern: str, name: str, where: str) -> Match | None:
        began = time.monotonic()
        try:
            if self.left <= 0:  # to `regex`, this would mean no limit
                raise TimeoutError
            # Compiling counts as well: a file may list a hundred thousand patterns.
            compiled = self._compile(pattern, where)
            match = getattr(compiled, method)(name, timeout=self.left)
        except TimeoutError as error:
            raise self._error(
                f"{where}: matching the regular expression `{pattern[:200]}` takes more than "
                f"{SECONDS:g} seconds. Write it without nested repetitions, or list the names."
            ) from error
        self.left -= time.monotonic() - began
        return match

    def _compile(self, pattern: str, where: str) -> object:
        if pattern in self._compiled:
            return self._compiled[pattern]
        if len(pattern) > LONGEST:
            raise self._error(
                f"{where} is a regular expression of {len(pattern)} characters; at most {LONGEST} "
                "are allowed."
            )
        try:
            with warnings.catch_warnings():
                # Python warns that `[[` may change its meaning in a future version.
                warnings.simplefilter("ignore", FutureWarning)
                # `regex` supports recursion, which can take any amount of memory; `re` rejects it.
                re.compile(pattern)
                compiled = regex.compile(pattern)
        except (re.error, regex.error, RecursionError, OverflowError) as error:
            raise self._error(
                f"{where}: `{pattern[:200]}` is not a regular expression ({error})."
            ) from error
        self._compiled[pattern] = compiled
        return compiled


def matching(pattern: str, names: Sequence[str], where: str) -> list[str]:
    """Return the names that a regular expression matches in full, in the given order.

    Parameters
    ----------
    where
        The setting or file that contains the pattern, for error messages.

    Examples
    --------
    >>> matching(r".*\\.(query|value)", ["layer.0.query", "layer.0.key"], "`target_modules`")
    ['layer.0.query']

    Raises
    ------
    InputError
        The pattern is not a regular expression, is too long, or takes too long to match.
    """
    patterns = Patterns()
    return [name for name in names if patterns.fullmatch(pattern, name, where)]
