"""The exceptions that perdure raises.

PerdureError
├── InputError        a setting, a name or a file given by the user cannot be used
│   ├── UnknownName   no method, rule, benchmark or task has that name
│   └── DataError     the examples of a task cannot be used
├── BackboneError     the pre-trained model lacks the parts that are needed
├── TrainingError     training went wrong: the loss is not a number
├── CheckFailed       a method or a rule does not keep what all of them promise
├── RunError          a run folder is missing, incomplete, damaged, or locked by another process
│   └── NotFinite     a combined model answers with numbers that are infinite or undefined
├── Stopped           the run was asked to stop (Ctrl-C, SIGTERM, …): what was learned is kept
├── CheckpointError   the files of a model or an adapter are damaged, foreign, or cannot be merged
├── OutputError       a result cannot be written: it already exists, the disk is full, or writing
│                     is not allowed
└── FetchError        a package with a model or data could not be fetched
    └── NotHere       something would have to be downloaded, where nothing may be

PerdureWarning        a request can be fulfilled only in part (a UserWarning)

Each message says what is wrong, what was given, what is allowed, and what to do. The
command line prints it as one sentence and exits with status 1.
"""

import difflib
import unicodedata
from collections.abc import Iterable

JOINERS = "\u200c\u200d"
"""These join Persian letters and emoji: harmless, although in Unicode's category Cf."""
UNSEEN = ("Cc", "Cf", "Cs", "Zl", "Zp")
"""Unicode's categories of controls, formats, half pairs and separators."""
LONGEST_NAME = 100  # characters of an unknown name that its message quotes


def printable(text: str, *, keep: str = "") -> str:
    r"""Escape every character of a text that a terminal would interpret, or cannot write.

    Names in a stranger's folder may hold escape sequences (colours, links, the clipboard), line
    breaks that fake another message, or marks that turn the rest of a line around. Letters, accents
    and emoji stay.

    Parameters
    ----------
    keep
        Characters to leave alone, such as the line ends of a text with several lines.

    Examples
    --------
    >>> printable("layer\x1b[31m\n") == r"layer\x1b[31m\n"
    True
    """
    if text.isprintable():  # almost every text
        return text
    characters = []
    for character in text:
        category = unicodedata.category(character)
        if category in UNSEEN and character not in JOINERS + keep:
            escaped = character.encode("unicode_escape")
            character = escaped.decode()
        characters.append(character)
    return "".join(characters)


class PerdureError(Exception):
    """The base of all errors that perdure raises. Its text is one line that is safe to print."""

    def __str__(self) -> str:
        return printable(super().__str__())


class InputError(PerdureError, ValueError):
    """A setting, a name or a file given by the user cannot be used."""


class UnknownName(InputError):
    """No `kind` (a method, a rule, …) is called `name`."""

    def __init__(self, kind: str, name: str, known: Iterable[str]):
        known = sorted(known)
        if len(name) > LONGEST_NAME:
            name = f"{name[:LONGEST_NAME]}…"
        # users write names as the papers do, with capitals and hyphens
        spelled = name.lower().replace("-", "_")
        similar = difflib.get_close_matches(
            spelled,
            known,
            n=1,
            cutoff=0.5,  # a little below the default of difflib, for more hints
        )
        message = f"No {kind} named `{name}`."
        if similar:
            message += f" Did you mean `{similar[0]}`?"
        names = ", ".join(known) or "none"
        super().__init__(f"{message} There are: {names}.")


class DataError(InputError):
    """The examples of a task cannot be used."""


class BackboneError(PerdureError):
    """The pre-trained model lacks the parts that are needed."""


class TrainingError(PerdureError):
    """Training went wrong: the loss is not a number."""


class CheckFailed(PerdureError):
    """A method or a rule does not keep what all of them promise."""


class RunError(PerdureError):
    """A run folder is missing, incomplete, damaged, or locked by another process."""


class NotFinite(RunError):
    """A combined model answers with numbers that are infinite or undefined."""


class Stopped(BaseException):
    """The run was asked to stop, by the signal of that number: what was learned is kept.

    Like `KeyboardInterrupt` it is not an `Exception`: no `except Exception` on the way takes
    it for something that went wrong.
    """

    def __init__(self, message: str, *, signal: int):
        super().__init__(message)
        self.signal = signal


class CheckpointError(PerdureError):
    """The files of a model or an adapter are damaged, foreign, or cannot be merged."""


class OutputError(PerdureError):
    """A result cannot be written: it already exists, or the system refuses."""


class FetchError(PerdureError):
    """A package with a model or data could not be fetched."""


class NotHere(FetchError):
    """Something is not on this machine, where nothing may be downloaded."""


class PerdureWarning(UserWarning):
    """A request can be fulfilled only in part."""
