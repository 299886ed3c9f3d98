"""The environment of a command: its output streams, `--debug`, and errors as single sentences."""

import codecs
import importlib.metadata
import os
import shutil
import sys
import traceback
import warnings
from collections.abc import Callable, Sequence
from typing import Annotated, NoReturn

import typer

from perdure import registry
from perdure.errors import PerdureError, Stopped, printable

DEBUG = "--debug"
VARIABLE = "PERDURE_DEBUG"
PANELS = 60  # characters per line: with fewer, rich's panels truncate the names of options
IN_ASCII = {
    "−": "-",
    "–": "-",
    "—": "-",
    "…": "...",
    "×": "x",
    "·": "*",
    "±": "+-",
    "‖": "|",
    "Δ": "d",
}
"""Replacements for symbols that the output encoding lacks, such as the minus sign of a number."""
INTERRUPTED = 130  # the exit status that click uses for Ctrl-C


def is_wide() -> bool:
    """Return whether the terminal has room for panels with three columns."""
    return shutil.get_terminal_size().columns >= PANELS


def _print_version(asked: bool) -> bool:
    if asked:  # typer also calls this function without the option
        typer.echo(f"perdure {importlib.metadata.version('perdure')}")
        raise typer.Exit
    return asked


def take_options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version."
        ),
    ] = False,
    debug: Annotated[
        bool,
        typer.Option(DEBUG, help="Also show the traceback of an error. Accepted anywhere."),
    ] = False,
) -> None:
    """Handle the options that are given before a command.

    `run` has already handled `--debug`; it is declared here only for the help.
    """


def run(app: Callable[..., object]) -> None:
    """Run the command line; report a user error as one red sentence and exit with status 1.

    With `--debug` anywhere on the command line, or with PERDURE_DEBUG set, the traceback
    is printed before the sentence. A traceback without `--debug` is a bug.
    """
    _print_in_any_encoding()
    warnings.formatwarning = _sentence
    arguments, debug = _without_debug(sys.argv[1:])
    try:
        app(arguments)
    except Stopped as stopped:
        # the status that shells report for a process that was ended by a signal
        _stop(str(stopped), 128 + stopped.signal)
    except (PerdureError, OSError) as error:
        if debug:
            _print_traceback(error)
        said = _of_the_system(error) if isinstance(error, OSError) else str(error)
        _stop(f"Error: {said}", 1)
    except SystemExit as stop:
        # click turns Ctrl-C outside of training into this
        if stop.code == INTERRUPTED:
            _stop("Stopped. What was finished is kept.", INTERRUPTED)
        raise
    except Exception as error:
        said = registry.fault(error)  # a mistake in the user's Python file, not in perdure
        if debug or not said:
            raise
        _stop(f"Error: {said}", 1)


def _print_traceback(error: Exception) -> None:
    lines = "".join(traceback.format_exception(error))
    typer.echo(printable(lines, keep="\n"), err=True, nl=False)


def _without_debug(arguments: Sequence[str]) -> tuple[list[str], bool]:
    """Return the arguments without `--debug`, and whether debugging is enabled.

    typer accepts `--debug` only before the name of a command, but users type it after the name.
    """
    rest = [argument for argument in arguments if argument != DEBUG]
    asked = len(rest) < len(arguments)
    by_variable = bool(os.environ.get(VARIABLE))
    return rest, asked or by_variable


def _print_in_any_encoding() -> None:
    """Make the output streams replace the characters that their encodings cannot represent.

    A command that has done its work must not fail because of a character.
    """
    codecs.register_error("perdure", _in_ascii)
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # closed by the process that started this one
            nowhere = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
            setattr(sys, name, nowhere)
        elif hasattr(stream, "reconfigure"):  # a substitute, for instance in tests, may lack it
            stream.reconfigure(errors="perdure")


def _in_ascii(error: UnicodeError) -> tuple[str, int]:
    """Replace the characters that an encoding lacks; `codecs` calls this as an error handler."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    missing = error.object[error.start : error.end]
    signs = [IN_ASCII.get(sign, "?") for sign in missing]
    return "".join(signs), error.end


def _of_the_system(error: OSError) -> str:
    """Return a sentence for an error of the operating system, with its file name if it has one."""
    path = error.filename
    if path is None:
        path = error.filename2  # the new name in a rename
    reason = error.strerror or str(error) or type(error).__name__
    if path is None:
        return f"{reason}."
    return f"{reason}: `{path}`."


def _sentence(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    line: str | None = None,
) -> str:
    """Format a warning: one from perdure as a sentence, any other with its file and line."""
    text = printable(str(message))
    if category.__module__.startswith("perdure."):
        return f"Warning: {text}\n"
    return f"{filename}:{lineno}: {category.__name__}: {text}\n"


def _stop(sentence: str, status: int) -> NoReturn:
    typer.secho(printable(sentence), fg="red", err=True)
    sys.exit(status)
