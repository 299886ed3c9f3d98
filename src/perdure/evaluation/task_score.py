"""The interface of a task's score, a function that returns a number between 0 and 1.

Its arguments are the answers, and the correct answers to each example.
"""

import importlib
import inspect
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from types import ModuleType
from typing import Literal, TypeVar

from perdure import registry
from perdure.errors import InputError

AnswerKind = Literal["classes", "text"]
References = Sequence[Sequence[str]]
"""The correct answers to each example, at least one."""
TaskScore = Callable[..., float]
"""A function of the answers and the correct answers.

A score with a third parameter `sources` also receives the prompts that were answered.
"""
F = TypeVar("F", bound=TaskScore)


def of(*kinds: AnswerKind, package: str = "") -> Callable[[F], F]:
    """Declare the kinds of answers that a score supports: `classes`, or free `text`, or both.

    Parameters
    ----------
    package
        A package from the extra `perdure[text]` that the score requires.
    """

    def declare(function: F) -> F:
        function.answers = kinds  # pyright: ignore[reportFunctionMemberAccess]
        function.package = package  # pyright: ignore[reportFunctionMemberAccess]
        return function

    return declare


def takes_sources(score: TaskScore) -> bool:
    """Return True if a score also takes the prompts, as its parameter `sources`.

    Examples
    --------
    >>> takes_sources(lambda answers, references, sources: 0.5)
    True
    """
    return "sources" in inspect.signature(score).parameters


def find(name: str, kind: AnswerKind, task: str) -> TaskScore:
    """Return the score with this name.

    Parameters
    ----------
    kind
        The kind of the task's answers.
    task
        The name of the task, for error messages.

    Raises
    ------
    UnknownName
        There is no such score.
    InputError
        The score does not support this kind of answers, or a package that it requires is
        not installed.
    """
    score = registry.find("score", name)
    kinds = getattr(score, "answers", ("classes", "text"))
    if kind not in kinds:
        given = "classes" if kind == "classes" else "free text"
        raise InputError(
            f"Task `{task}`: the score `{name}` is for {' and '.join(kinds)}, but the task is "
            f"answered with {given}. Scores for it: {', '.join(_fitting(kind))}."
        )
    if kind == "classes" and takes_sources(score):
        raise InputError(
            f"Task `{task}`: the score `{name}` takes `sources`, the prompts, which are kept for "
            "free text only, but the task is answered with classes. Leave the parameter out, or "
            "take another score."
        )
    # Now, because the score is computed only after the task was learned.
    package = getattr(score, "package", "")
    if package and find_spec(package) is None:
        raise InputError(
            f"Task `{task}`: the score `{name}` needs `{package}`: `pip install 'perdure[text]'`."
        )
    return score


def optional(module: str, score: str, package: str) -> ModuleType:
    """Import a module of an optional package that a score needs.

    Raises
    ------
    InputError
        The package is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise InputError(
            f"The score `{score}` needs `{package}`: `pip install 'perdure[text]'`."
        ) from error


def best(
    value: Callable[[str, str], float], answers: Sequence[str], references: References
) -> float:
    """Return the mean of `value(answer, reference)`, using the best reference for each answer."""
    total = 0.0
    for answer, right in zip(answers, references, strict=True):
        total += max(value(answer, reference) for reference in right)
    return total / len(answers)


def _fitting(kind: AnswerKind) -> list[str]:
    fitting = []
    for name in registry.names("score"):
        kinds = getattr(registry.find("score", name), "answers", (kind,))
        if kind in kinds:
            fitting.append(name)
    return fitting
