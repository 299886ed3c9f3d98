"""The suite of all checks of one method or rule, which is given by name or as a Python file."""

import copy
import functools
import inspect
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeVar

from perdure import registry
from perdure.checks import method, models, rule
from perdure.checks.method import MethodUnderTest
from perdure.checks.rule import RuleUnderTest
from perdure.errors import CheckFailed, InputError, PerdureError, UnknownName
from perdure.learning.method import Method
from perdure.runs.recipe import make_method
from perdure.settings import checked, named, section

KINDS: tuple[registry.Kind, ...] = ("method", "rule")
FAMILIES: dict[models.Family, str] = {
    "encoder": "",
    "causal": "Causal language model: ",
    "seq2seq": "Encoder-decoder model: ",
}
"""The prefix of a promise, for each kind of model."""
LOADED = "The method or rule can be loaded with these settings."
Subject = TypeVar("Subject", MethodUnderTest, RuleUnderTest)


@dataclass(frozen=True)
class Promise:
    """A promise in one sentence, with the check that raises an error if it is broken."""

    text: str
    check: Callable[[], None]


@dataclass(frozen=True)
class Outcome:
    """The outcome of one check.

    Attributes
    ----------
    promise
        The promise that was checked, in one sentence.
    reason
        One sentence on why the check failed; empty if it passed.
    error
        The error that the check raised; None if it passed.
    """

    promise: str
    reason: str = ""
    error: Exception | None = None

    @property
    def passed(self) -> bool:
        return self.error is None

    def lines(self) -> list[str]:
        """Return the verdict with the promise and, if the check failed, a line with the reason."""
        if self.passed:
            return [f"passed  {self.promise}"]
        return [
            f"failed  {self.promise}",
            f"        {self.reason}",
        ]

    def plain(self) -> dict[str, str | bool]:
        """Return the outcome as a dict that can be written as JSON."""
        return {
            "promise": self.promise,
            "passed": self.passed,
            "reason": self.reason,
        }


def outcomes(name: str, settings: Sequence[str] = ()) -> Iterator[Outcome]:
    """Check a method or a rule, and yield the outcome of each check as soon as it is known.

    Parameters
    ----------
    name
        The name of a method or a rule, or the path of a Python file that defines one.
    settings
        Settings in the form `key=value`; the others have their default values.

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
    _check_that_it_exists(name)
    # The checks of a method write their runs here; the folder is deleted after the last outcome.
    with TemporaryDirectory(prefix="perdure-check-") as folder:
        promises: list[Promise] = []

        def load() -> None:
            promises.extend(_promises(name, settings, Path(folder)))

        # Loading is a check, too, and the only one for a file that cannot be loaded.
        yield _outcome(Promise(LOADED, load))
        for promise in promises:
            yield _outcome(promise)


def require(name: str, outcomes: Sequence[Outcome]) -> None:
    """Raise an error unless all checks have passed.

    Raises
    ------
    CheckFailed
        A check has failed. The cause is an exception group with the errors of all failed checks.
    """
    errors: list[Exception] = []
    for outcome in outcomes:
        if outcome.error:
            errors.append(outcome.error)
    if errors:
        group = ExceptionGroup("checks", errors)
        count = f"{len(errors)} of {len(outcomes)}"
        raise CheckFailed(f"`{name}` fails {count} checks.") from group


def _check_that_it_exists(name: str) -> None:
    if name.endswith(".py"):
        if not Path(name).is_file():
            raise InputError(f"There is no file `{name}`.")
        return
    known: set[str] = set()
    for kind in KINDS:
        known.update(registry.names(kind))
    if name not in known:
        raise UnknownName("method or rule", name, known)


def _promises(name: str, settings: Sequence[str], folder: Path) -> list[Promise]:
    """Load a method or a rule, and return its promises."""
    given = section(name, settings)
    kind = _kind(name)
    loaded = registry.find(kind, name)
    # Settings of a rule are checked here; those of a method by `make_method`.
    if kind == "rule":
        _, options = named(given, "rule")
        options = checked(loaded, options, f"rule `{name}`")
        rule_subject = RuleUnderTest(name, loaded, options)
        return [_promise(check, rule_subject) for check in rule.CHECKS]
    if not (inspect.isclass(loaded) and issubclass(loaded, Method)):
        raise InputError(
            f"`{name}` defines `{loaded.__name__}`, which is not derived from `perdure.Method`."
        )
    promises: list[Promise] = []
    for family, where in FAMILIES.items():
        subject = MethodUnderTest(
            name,
            # Copied: instances must not share a list or a mapping that one of them changes.
            lambda: make_method(copy.deepcopy(given)),
            folder / family,
            family,
        )
        promises += [_promise(check, subject, where) for check in method.checks_of(subject)]
    return promises


def _promise(check: Callable[[Subject], None], subject: Subject, where: str = "") -> Promise:
    text = inspect.getdoc(check) or check.__name__
    return Promise(where + text, functools.partial(check, subject))


def _kind(name: str) -> registry.Kind:
    """Return the kind, method or rule, of a name or a Python file.

    Raises
    ------
    InputError
        The file cannot be run, or defines neither a method nor a rule.
    """
    if not name.endswith(".py"):
        # The name exists (`_check_that_it_exists`), so one of the kinds has it.
        return next(kind for kind in KINDS if name in registry.names(kind))
    errors: dict[str, InputError] = {}
    for kind in KINDS:
        try:
            registry.find(kind, name)
            return kind
        except InputError as error:
            errors[str(error)] = error
    # The same error for both kinds means that the file itself is wrong.
    if len(errors) == 1:
        raise next(iter(errors.values()))
    expected = f"one class derived from `perdure.Method`, or a function `{Path(name).stem}`"
    raise InputError(f"`{name}` must define {expected}; it defines neither, or several classes.")


def _outcome(promise: Promise) -> Outcome:
    """Run the check of a promise, and return its outcome."""
    try:
        promise.check()
    # The messages of our own errors are already sentences.
    except PerdureError as error:
        return Outcome(promise.text, str(error), error)
    except Exception as error:
        # An error in the author's file is a failed check that names the line, not a crash.
        last_line = traceback.format_exception_only(error)[-1]
        summary = " ".join(last_line.split())
        reason = registry.fault(error) or f"{summary}."
        return Outcome(promise.text, reason, error)
    return Outcome(promise.text)
