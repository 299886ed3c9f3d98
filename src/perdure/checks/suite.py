"""All checks of one method or rule, found by its name or in a Python file."""

import copy
import functools
import inspect
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from perdure import registry
from perdure.checks import method, rule
from perdure.checks.method import MethodUnderTest
from perdure.checks.rule import RuleUnderTest
from perdure.errors import CheckFailed, InputError, PerdureError, UnknownName
from perdure.learning.method import Method
from perdure.runs.recipe import make_method
from perdure.settings import checked, named, section

KINDS: tuple[registry.Kind, ...] = ("method", "rule")
LOADED = "It can be loaded, with these settings."
Bound = tuple[Callable[[Any], None], Any]
"""A check, and what it takes."""


@dataclass(frozen=True)
class Outcome:
    """The outcome of one check.

    Attributes
    ----------
    promise
        What was checked: a sentence.
    reason
        Why it failed: a sentence; empty where it passed.
    error
        The error with which it failed.
    """

    promise: str
    reason: str = ""
    error: Exception | None = None

    @property
    def passed(self) -> bool:
        return self.error is None

    def lines(self) -> list[str]:
        """Return the lines that say it: the verdict with the promise, and below it the reason of a failure."""
        if self.passed:
            return [f"passed  {self.promise}"]
        return [f"failed  {self.promise}", f"        {self.reason}"]

    def plain(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return {"promise": self.promise, "passed": self.passed, "reason": self.reason}


def outcomes(name: str, settings: Sequence[str] = ()) -> Iterator[Outcome]:
    """Check a method or a rule; yield the outcome of each check as soon as it is known.

    Parameters
    ----------
    name
        Its name, or the path of a Python file that holds one.
    settings
        Its settings as `key=value`; by default its own.

    Raises
    ------
    InputError
        There is no such method, rule or file.

    Examples
    --------
    >>> {outcome.passed for outcome in outcomes("median_of_nothing")}
    Traceback (most recent call last):
    perdure.errors.UnknownName: No method or rule named `median_of_nothing`. ...
    >>> {outcome.passed for outcome in outcomes("task_arithmetic", ["scale=0.3"])}
    {True}
    """
    _check_that_it_is_there(name)
    with TemporaryDirectory(prefix="perdure-check-") as folder:
        checks: list[Bound] = []
        yield _outcome(LOADED, lambda: checks.extend(_checks(name, settings, Path(folder))))
        for check, subject in checks:
            yield _outcome(
                inspect.getdoc(check) or check.__name__, functools.partial(check, subject)
            )


def require(name: str, outcomes: Sequence[Outcome]) -> None:
    """Raise an error unless all checks have passed.

    Raises
    ------
    CheckFailed
        One has not; each error is in the cause.
    """
    errors = [outcome.error for outcome in outcomes if outcome.error]
    if errors:
        group = ExceptionGroup("checks", errors)
        raise CheckFailed(f"`{name}` fails {len(errors)} of {len(outcomes)} checks.") from group


def _check_that_it_is_there(name: str) -> None:
    known = {each for kind in KINDS for each in registry.names(kind)}
    if name.endswith(".py"):
        if not Path(name).is_file():
            raise InputError(f"There is no file `{name}`.")
    elif name not in known:
        raise UnknownName("method or rule", name, known)


def _checks(name: str, settings: Sequence[str], folder: Path) -> list[Bound]:
    """Load a method or a rule; return its checks, each with what it takes."""
    given = section(name, settings)
    kind = _kind(name)
    found = registry.find(kind, name)
    if kind == "method":
        if not (inspect.isclass(found) and issubclass(found, Method)):
            raise InputError(
                f"`{name}` holds `{found.__name__}`, which is not derived from `perdure.Method`."
            )
        subject = MethodUnderTest(name, lambda: make_method(copy.deepcopy(given)), folder)
        return [(check, subject) for check in method.checks_of(subject)]
    options = checked(found, named(given, "rule")[1], f"rule `{name}`")
    return [(check, RuleUnderTest(name, found, options)) for check in rule.CHECKS]


def _kind(name: str) -> registry.Kind:
    """Return what a name stands for, or what a file holds.

    Raises
    ------
    InputError
        The file cannot be run, or holds neither a method nor a rule.
    """
    if not name.endswith(".py"):
        return next(kind for kind in KINDS if name in registry.names(kind))
    errors = {}
    for kind in KINDS:
        try:
            registry.find(kind, name)
            return kind
        except InputError as error:
            errors[str(error)] = error
    if len(errors) == 1:  # the file itself is wrong, whatever it holds
        raise next(iter(errors.values()))
    wanted = f"one class derived from `perdure.Method`, or a function `{Path(name).stem}`"
    raise InputError(f"`{name}` must hold {wanted}; it holds neither, or several classes.")


def _outcome(promise: str, check: Callable[[], None]) -> Outcome:
    """Do a check, and return how it went."""
    try:
        check()
    except PerdureError as error:
        return Outcome(promise, str(error), error)
    except Exception as error:
        said = " ".join(traceback.format_exception_only(error)[-1].split())
        return Outcome(promise, registry.fault(error) or f"{said}.", error)
    return Outcome(promise)
