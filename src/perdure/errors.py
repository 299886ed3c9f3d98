"""The exceptions that perdure raises.

PerdureError
├── InputError        a setting, a name or a file given by the user cannot be used
│   ├── UnknownName   no method, rule, benchmark, task or setting has the given name
│   └── DataError     the examples of a task cannot be used
├── BackboneError     the pre-trained model lacks a required part
├── TrainingError     training failed because the loss or a feature is not a finite number
├── OutOfMemory       the memory of the device is full; finished work is saved
├── CheckFailed       a method or a rule fails one of the checks of `perdure check`
├── RunError          a run folder is missing, incomplete, damaged, or locked by another process
│   └── NotFinite     a combined model outputs infinite or undefined numbers
├── Stopped           the run was asked to stop (Ctrl-C, SIGTERM, …); its progress is saved
├── CheckpointError   the files of a model or an adapter are damaged, have an unknown format, or
│                     cannot be merged
├── OutputError       a result cannot be written: it already exists, the disk is full, or writing
│                     is not allowed
└── FetchError        a package with a model or data could not be downloaded or read
    └── NotHere       a file would have to be downloaded, but downloads are not allowed

PerdureWarning        a request can be fulfilled only in part (a UserWarning)

Each message says what is wrong, what was given, what is allowed, and what to do. The
command line prints the message and exits with status 1.
"""

import difflib
import unicodedata
from collections.abc import Iterable

JOINERS = "\u200c\u200d"
"""Characters that join Persian letters and emoji; harmless, although in Unicode's category Cf."""
UNSEEN = ("Cc", "Cf", "Cs", "Zl", "Zp")
"""The Unicode categories of control, format, surrogate and separator characters."""
LONGEST_NAME = 100  # an error message quotes at most this many characters of an unknown name


def printable(text: str, *, keep: str = "") -> str:
    r"""Escape every character of a text that a terminal would interpret or cannot display.

    Names in an untrusted folder may contain escape sequences (colours, links, clipboard
    access), line breaks that imitate a second message, or marks that reverse the
    direction of the text. Letters, accents and emoji are not escaped.

    Parameters
    ----------
    keep
        Characters that are not escaped, such as the line breaks of a text with several lines.

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


def clean(text: str) -> str:
    """Escape the control characters of a text, except for line breaks and tabs."""
    return printable(text, keep="\n\t")


class PerdureError(Exception):
    """The base class of all errors that perdure raises.

    The message is a single line that is safe to print.
    """

    def __str__(self) -> str:
        return printable(super().__str__())


class InputError(PerdureError, ValueError):
    """A setting, a name or a file given by the user cannot be used."""


class UnknownName(InputError):
    """No method, rule, benchmark, task or setting has the given name.

    The message suggests the most similar of the `known` names, and lists all of them.
    """

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
        super().__init__(f"{message} Available: {names}.")


class DataError(InputError):
    """The examples of a task cannot be used."""


class BackboneError(PerdureError):
    """The pre-trained model lacks a required part."""


class TrainingError(PerdureError):
    """Training failed because the loss or a feature is not a finite number."""


class OutOfMemory(PerdureError):
    """The memory of the device is full; finished work is saved."""


class CheckFailed(PerdureError):
    """A method or a rule fails one of the checks of `perdure check`."""


class RunError(PerdureError):
    """A run folder is missing, incomplete, damaged, or locked by another process."""


class NotFinite(RunError):
    """A combined model outputs infinite or undefined numbers."""


class Stopped(BaseException):
    """The run was asked to stop by the signal with the number `signal`; its progress is saved.

    Like `KeyboardInterrupt`, it is not an `Exception`, so that `except Exception` does
    not catch it as if something had gone wrong.
    """

    def __init__(self, message: str, *, signal: int):
        super().__init__(message)
        self.signal = signal


class CheckpointError(PerdureError):
    """The files of a model or an adapter are damaged, in an unknown format, or not mergeable."""


class OutputError(PerdureError):
    """A result cannot be written, because it already exists or the system refuses."""


class FetchError(PerdureError):
    """A package with a model or data could not be downloaded or read."""


class NotHere(FetchError):
    """A model or data set is not on this machine, and downloads are not allowed."""


class PerdureWarning(UserWarning):
    """A request can be fulfilled only in part."""
