"""Regular expressions from a recipe or an adapter's configuration, matched in bounded time.

A short pattern can keep `re` busy for centuries, and the file's author may have intended that.
`regex`, which transformers needs anyway, matches the same patterns and stops after a given time.
"""

import re
import time
import warnings
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import regex

from perdure.errors import InputError, PerdureError

# Characters of a pattern. One that lists every layer of a large model has about half of that.
LONGEST = 10_000

# The time for all names together. Patterns that people write need milliseconds for thousands of
# layers.
SECONDS = 2.0


@runtime_checkable
class Match(Protocol):
    """A match of `regex`, whose own class has no name that a type checker knows."""

    def __getitem__(self, group: str | int, /) -> str: ...


class Patterns:
    """The regular expressions of one recipe or file, which share a limited time.

    Parameters
    ----------
    error
        The class of the errors that are raised.

    Attributes
    ----------
    left
        The seconds that are left.
    """

    def __init__(self, error: type[PerdureError] = InputError) -> None:
        self.left = SECONDS
        self._error = error
        self._compiled: dict[str, object] = {}

    def fullmatch(self, pattern: str, name: str, where: str) -> Match | None:
        """Return the match of a whole name, as `re.fullmatch` does, or None.

        Parameters
        ----------
        where
            The setting or the file that holds the pattern, for the error.

        Raises
        ------
        PerdureError
            The pattern is not a regular expression, is too long, or takes too much time. The
            error has the class `error`.
        """
        return self._timed("fullmatch", pattern, name, where)

    def match(self, pattern: str, name: str, where: str) -> Match | None:
        """Return the match of a name's beginning, as `re.match` does, or None.

        It raises the same errors as `fullmatch`.
        """
        return self._timed("match", pattern, name, where)

    def _timed(self, method: str, pattern: str, name: str, where: str) -> Match | None:
        began = time.monotonic()
        try:
            if self.left <= 0:  # which `regex` would take for no limit
                raise TimeoutError
            # Compiling counts as well: a file may list a hundred thousand patterns.
            compiled = self._compile(pattern, where)
            match = getattr(compiled, method)(name, timeout=self.left)
        except TimeoutError as error:
            raise self._error(
                f"{where}: matching the regular expression `{pattern[:200]}` takes more than "
                f"{SECONDS:g} seconds. Write it without repetitions inside of repetitions, or list "
                "the names."
            ) from error
        self.left -= time.monotonic() - began
        return match

    def _compile(self, pattern: str, where: str) -> object:
        if pattern in self._compiled:
            return self._compiled[pattern]
        if len(pattern) > LONGEST:
            raise self._error(
                f"{where} is a regular expression of {len(pattern)} characters; at most {LONGEST} "
                "are read."
            )
        try:
            with warnings.catch_warnings():
                # `[[` may mean something else one day.
                warnings.simplefilter("ignore", FutureWarning)
                # `regex` has recursion, which can take any amount of memory; `re` refuses it.
                re.compile(pattern)
                compiled = regex.compile(pattern)
        except (re.error, regex.error, RecursionError, OverflowError) as error:
            raise self._error(
                f"{where}: `{pattern[:200]}` is not a regular expression ({error})."
            ) from error
        self._compiled[pattern] = compiled
        return compiled


def matching(pattern: str, names: Sequence[str], where: str) -> list[str]:
    """Return the names that a regular expression matches from start to end, in their order.

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
        The pattern is not a regular expression, is too long, or takes too much time.
    """
    patterns = Patterns()
    return [name for name in names if patterns.fullmatch(pattern, name, where)]
