"""Python files with a user's own method, rule or benchmark, named by their path: run, if they are trusted.

A run folder may come from a stranger, and may name such a file as well. Whoever reads names out of a run
folder says so (`named_by_run`): a file that only a run folder names is not run before the user says `trust`.
"""

import functools
import importlib.util
import os
import sys
import traceback
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from perdure.errors import InputError, RunError

_named_by_runs: dict[str, Path] = {}
"""The Python files that run folders name, as they name them, and the folder."""
_trusted: set[str] = set()
"""The Python files that the user named himself, or said that he trusts: absolute paths."""
_loaded: dict[str, str] = {}
"""The Python files that were run, by the name that stands in tracebacks, and as they were given."""


def named_by_run(values: Any, folder: Path) -> None:
    """Remember the Python files that are named in a run folder: they are not run before they are trusted."""
    for name in python_files(values):
        _named_by_runs.setdefault(name, folder)


def trust(values: Any) -> None:
    """Allow the Python files that these settings name to be run."""
    _trusted.update(os.path.abspath(name) for name in python_files(values))


def python_files(values: Any) -> Iterator[str]:
    """Yield every text in nested mappings and lists that `find` would take for a Python file."""
    if isinstance(values, str) and values.endswith(".py"):
        yield values
    elif isinstance(values, Mapping):
        for value in values.values():
            yield from python_files(value)
    elif isinstance(values, list | tuple):
        for value in values:
            yield from python_files(value)


def load(name: str) -> ModuleType:
    """Run a Python file and return its module; if it has not changed since, the one that is there.

    Raises
    ------
    InputError
        There is no such file, or it fails.
    RunError
        A run folder names it, and nobody said that it is trusted.
    """
    path = os.path.abspath(name)
    if name in _named_by_runs and path not in _trusted:
        raise RunError(
            f"`{_named_by_runs[name]}` names the Python file `{name}`, which would be run with all your rights. If "
            "you trust whoever wrote the folder and the file, give `--trust` (in Python `trust=True`)."
        )
    _trusted.add(path)  # the user named it: it stays so if he then opens a run that names it too
    if not os.path.isfile(path):
        raise InputError(f"There is no file `{name}`.")
    status = os.stat(path)
    return _module(path, name, status.st_mtime_ns, status.st_size)


@functools.cache
def _module(path: str, name: str, *version: int) -> ModuleType:
    """Run a Python file; again only if its `version` is another, because a rule is looked up at each of its calls."""
    # nothing else has this name: a file `torch.py` leaves `import torch` alone
    private = f"perdure_file_{zlib.crc32(os.fsencode(path)):08x}.{Path(name).stem}"
    spec = importlib.util.spec_from_file_location(private, path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[private] = module  # dataclasses look their module up
    _loaded[path] = name
    try:
        spec.loader.exec_module(module)
    except SyntaxError as error:
        raise InputError(f"`{name}` is not Python: {error}.") from error
    except (Exception, SystemExit) as error:
        raise InputError(fault(error) or f"`{name}` cannot be run: {_said(error)}.") from error
    return module


def fault(error: BaseException) -> str | None:
    """Say where in a user's own Python file an error was raised; nothing if it was not raised in one.

    An import that fails, or a hook, names the last line of such a file that was reached.
    """
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if frame.filename in _loaded]
    if not own:
        return None
    line, path = own[-1].lineno, _loaded[own[-1].filename]
    return f"`{path}`, line {line}: {_said(error)}."


def _said(error: BaseException) -> str:
    """Return an error's kind and text on one line."""
    return " ".join(traceback.format_exception_only(error)[-1].split())
