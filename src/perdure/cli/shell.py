"""What surrounds a command: its output streams, `--debug`, and the one sentence that is said when it cannot go on."""

import codecs
import importlib.metadata
import os
import shutil
import sys
import traceback
import warnings
from collections.abc import Callable, Sequence
from typing import Annotated, Any, NoReturn

import typer

from perdure import registry
from perdure.errors import PerdureError, Stopped, printable

DEBUG = "--debug"
VARIABLE = "PERDURE_DEBUG"
PANELS = 60  # characters on a line
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
"""What our own signs become where the output cannot write them: without its minus a number is another one."""
INTERRUPTED = 130  # the exit status that click gives Ctrl-C


def is_wide() -> bool:
    """Return whether the terminal has room for panels with three columns."""
    return shutil.get_terminal_size().columns >= PANELS


def _print_version(asked: bool) -> bool:
    if asked:
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
        typer.Option(DEBUG, help="Show the traceback of an error, too; it may stand anywhere."),
    ] = False,
) -> None:
    """Take the options that stand before a command; `run` has read `--debug` already, wherever it stands."""


def run(app: Callable[..., Any]) -> None:
    """Run the command line: a user's mistake is one red sentence and status 1; a traceback is a bug.

    With `--debug` anywhere on the line, or with PERDURE_DEBUG set, the traceback is printed before the sentence.
    """
    _print_in_any_encoding()
    warnings.formatwarning = _sentence
    arguments, debug = _without_debug(sys.argv[1:])
    try:
        app(arguments)
    except Stopped as stopped:
        _stop(str(stopped), 128 + stopped.signal)
    except (PerdureError, OSError) as error:
        if debug:
            lines = "".join(traceback.format_exception(error))
            typer.echo(printable(lines, keep="\n"), err=True, nl=False)
        said = _of_the_system(error) if isinstance(error, OSError) else str(error)
        _stop(f"Error: {said}", 1)
    except SystemExit as stop:
        if stop.code == INTERRUPTED:
            _stop("Stopped. What was finished is kept.", INTERRUPTED)
        raise
    except Exception as error:
        said = registry.fault(error)  # a mistake in the user's own file, not in ours
        if debug or not said:
            raise
        _stop(f"Error: {said}", 1)


def _without_debug(arguments: Sequence[str]) -> tuple[list[str], bool]:
    """The arguments without `--debug`, which may stand behind a command's name as well as before it."""
    rest = [argument for argument in arguments if argument != DEBUG]
    asked = len(rest) < len(arguments)
    return rest, asked or bool(os.environ.get(VARIABLE))


def _print_in_any_encoding() -> None:
    """Print another sign for what the output cannot write: a command that did its work does not fail on a letter."""
    codecs.register_error("perdure", _in_ascii)
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # closed by who started us
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
        elif hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="perdure")


def _in_ascii(error: UnicodeError) -> tuple[str, int]:
    """Replace the characters that an encoding lacks, as `codecs` asks for it."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    missing = error.object[error.start : error.end]
    return "".join(IN_ASCII.get(sign, "?") for sign in missing), error.end


def _of_the_system(error: OSError) -> str:
    """An error of the operating system with the file that it is about, where the system names one."""
    path = error.filename if error.filename is not None else error.filename2
    reason = error.strerror or str(error) or type(error).__name__
    return f"{reason}." if path is None else f"{reason}: `{path}`."


def _sentence(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    line: str | None = None,
) -> str:
    """A warning of ours as one sentence; of others with the place that gave it."""
    ours = category.__module__.startswith("perdure.")
    said = printable(str(message))
    return f"Warning: {said}\n" if ours else f"{filename}:{lineno}: {category.__name__}: {said}\n"


def _stop(sentence: str, status: int) -> NoReturn:
    typer.secho(printable(sentence), fg="red", err=True)
    sys.exit(status)
