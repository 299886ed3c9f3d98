"""The file name is the registry: methods, rules, benchmarks, scores and models are not listed.

A name is looked up as a file of `perdure/methods`, `perdure/rules`, `perdure/benchmarks`,
`perdure/evaluation/scores` or `perdure/bundled`, as an entry point of the group
`perdure.methods` (`perdure.rules`, …) of another package, or as a path to a Python file
(`./mine.py`), which is run if it is trusted.

A run folder may come from a stranger, and may name such a file as well. Code that reads names from
a run folder must register them (`named_by_run`): a file that only a run folder names is not run
before the user says `trust`.
"""

import contextlib
import functools
import importlib
import importlib.util
import inspect
import os
import pkgutil
import sys
import traceback
import warnings
import zlib
from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, TypedDict

from perdure.errors import InputError, PerdureWarning, RunError, UnknownName

Kind = Literal["method", "rule", "benchmark", "model", "score", "text"]
PACKAGES: dict[Kind, str] = {
    "method": "perdure.methods",
    "rule": "perdure.rules",
    "benchmark": "perdure.benchmarks",
    "model": "perdure.bundled",
    "score": "perdure.evaluation.scores",
    "text": "perdure.bundled.texts",
}
SHOWN: tuple[Kind, ...] = ("method", "rule", "benchmark", "score")
"""The kinds that are listed and explained; bundled models and texts have no settings."""
DIAGNOSTICS = "perdure.report.diagnostics"
RULES_BEFORE = "perdure.merging"
"""An older name of the rules' group of entry points; packages that still use it are found, too."""

Thing = Callable[..., Any]
"""A method's class, or the function of a rule or a benchmark."""


class About(TypedDict):
    """The answer of `about`, as the command line prints it."""

    kind: Kind
    name: str
    text: str
    settings: dict[str, str]


def names(kind: Kind) -> list[str]:
    """Return the names of all methods, rules, benchmarks or models that are installed."""
    package = importlib.import_module(PACKAGES[kind])
    others = {point.name for point in _of_others(kind)}
    return sorted(_files(package) | others)


def _files(package: ModuleType) -> set[str]:
    """Return the names of a package's files, without the packages in it, such as `parts`."""
    return {module.name for module in pkgutil.iter_modules(package.__path__) if not module.ispkg}


# Cached: reading the metadata of all installed packages takes as long as some steps of training.
@functools.cache
def _of_others(kind: Kind) -> tuple[EntryPoint, ...]:
    """Return the entry points of other packages."""
    points = entry_points(group=PACKAGES[kind])
    if kind == "rule":
        points = (*points, *entry_points(group=RULES_BEFORE))
    return tuple(points)


def find(kind: Kind, name: str) -> Thing:
    """Return the method's class, or the rule's or benchmark's function, called `name`.

    Raises
    ------
    UnknownName
        Nothing has that name; the message names the most similar one.
    InputError
        The file has no method, or several; or it fails when it is run.
    RunError
        A run folder names the file, and it is not trusted.
    """
    if name.endswith(".py"):
        return _take(kind, _load(name), Path(name).stem)
    known = names(kind)
    if name not in known:
        raise UnknownName(kind, name, known)
    # entry points come first, so that a package can replace one of ours by another of its name
    for point in _of_others(kind):
        if point.name == name:
            _warn_of_replacement(kind, point)
            return point.load()
    return _take(kind, importlib.import_module(f"{PACKAGES[kind]}.{name}"), name)


# Cached, so that it warns once in a process: a name is looked up again and again.
@functools.cache
def _warn_of_replacement(kind: Kind, point: EntryPoint) -> None:
    """Warn if another package's entry point replaces something of ours."""
    package = importlib.import_module(PACKAGES[kind])
    if point.name in _files(package):
        other = point.dist.name if point.dist else point.value
        warnings.warn(
            f"The {kind} `{point.name}` is that of the package `{other}`, which replaces perdure's "
            "own. Uninstall the package, or rename its entry point, if that is not meant.",
            PerdureWarning,
            stacklevel=3,
        )


def _take(kind: Kind, module: ModuleType, name: str) -> Thing:
    """Return the thing that a file defines.

    A method is the only class in its file that has the hooks; a rule or a benchmark is the
    function that is named as the file.
    """
    things: list[Thing] = []
    for value in vars(module).values():
        if getattr(value, "__module__", None) != module.__name__:  # imported from somewhere else
            continue
        if kind == "method":
            fits = inspect.isclass(value) and hasattr(value, "begin")
        else:
            fits = inspect.isfunction(value) and value.__name__ == name
        if fits:
            things.append(value)
    if len(things) != 1:
        is_method = kind == "method"
        needed = "one class derived from `perdure.Method`" if is_method else f"a function `{name}`"
        raise InputError(f"`{module.__file__}` must hold {needed}; it holds {len(things)}.")
    return things[0]


def diagnostics() -> dict[str, Any]:
    """Return each diagnostic's declaration, by name, in display order.

    A diagnostic is found like a method or a rule: by a file of `perdure/report/diagnostics`,
    and the file of the same name in `perdure/analysis` that computes it. Recipes do not name
    diagnostics, so they are not among `names`.
    """
    package = importlib.import_module(DIAGNOSTICS)
    declared = {}
    for name in sorted(_files(package)):
        module = importlib.import_module(f"{DIAGNOSTICS}.{name}")
        declared[name] = module.DIAGNOSTIC
    return dict(sorted(declared.items(), key=lambda item: item[1].position))


def options(thing: Callable[..., object]) -> dict[str, inspect.Parameter]:
    """Return the settings of a method, rule or benchmark, with their types and defaults.

    They are its keyword-only parameters.
    """
    # annotations may be texts (`from __future__ import annotations`), which `eval_str` makes types
    signature = inspect.signature(thing, eval_str=True)
    keyword_only = {}
    for name, parameter in signature.parameters.items():
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY:
            keyword_only[name] = parameter
    return keyword_only


def summary(thing: Callable[..., object]) -> str:
    """Return the first paragraph of a docstring, on one line."""
    docstring = inspect.getdoc(thing) or ""
    paragraph, *_ = docstring.split("\n\n")
    return paragraph.replace("\n", " ")


def about(name: str) -> About:
    """Describe a method, rule, benchmark or score, and its settings with their defaults."""
    kinds: list[Kind] = []
    known: set[str] = set()
    for kind in SHOWN:
        of_kind = names(kind)
        known.update(of_kind)
        if name.endswith(".py") or name in of_kind:
            kinds.append(kind)
    if not kinds:
        raise UnknownName("method, rule, benchmark or score", name, known)
    thing, kind = _first(kinds, name)  # a name may be that of a method and of a rule
    settings = {}
    for key, parameter in options(thing).items():
        default = parameter.default
        needed = default is inspect.Parameter.empty
        settings[key] = "needed" if needed else repr(default)
    text = inspect.getdoc(thing) or ""
    nature = getattr(thing, "nature", None)  # only rules declare one
    if nature:
        order = nature.order.capitalize()
        text += f"\n\n{order}. Kept for the next task: {nature.state}."
    return {
        "kind": kind,
        "name": name,
        "text": text,
        "settings": settings,
    }


def _first(kinds: list[Kind], name: str) -> tuple[Thing, Kind]:
    """Return the thing in a file, which may be of any kind; if no kind fits, the last one fails."""
    for kind in kinds[:-1]:
        with contextlib.suppress(InputError):
            return find(kind, name), kind
    return find(kinds[-1], name), kinds[-1]


# -- the user's own Python files

_named_by_runs: dict[str, Path] = {}
"""The Python files that run folders name, as they name them, each with the first such folder."""
_trusted: set[str] = set()
"""The absolute paths of the Python files that the user named, or trusted with `trust`."""
_loaded: dict[str, str] = {}
"""The Python files that were run: the name as given, by the path that tracebacks show."""


def named_by_run(values: object, folder: Path) -> None:
    """Remember the Python files that a run folder names, which are not run until trusted."""
    for name in python_files(values):
        _named_by_runs.setdefault(name, folder)


def trust(values: object) -> None:
    """Allow the Python files that these settings name to be run."""
    # absolute paths: trust in `./mine.py` is not trust in a file of that name in another folder
    _trusted.update(os.path.abspath(name) for name in python_files(values))


def python_files(values: object) -> Iterator[str]:
    """Yield every text in nested mappings and lists that `find` would take for a Python file."""
    if isinstance(values, str) and values.endswith(".py"):
        yield values
    elif isinstance(values, Mapping):
        for value in values.values():
            yield from python_files(value)
    elif isinstance(values, list | tuple):
        for value in values:
            yield from python_files(value)


def _load(name: str) -> ModuleType:
    """Run a Python file and return its module; an unchanged file is not run again.

    Raises
    ------
    InputError
        The file does not exist, or fails.
    RunError
        A run folder names it, and nobody said that it is trusted.
    """
    path = os.path.abspath(name)
    if name in _named_by_runs and path not in _trusted:
        raise RunError(
            f"`{_named_by_runs[name]}` names the Python file `{name}`, which would be run with all "
            "your rights. If you trust whoever wrote the folder and the file, give `--trust` (in "
            "Python `trust=True`)."
        )
    # The user named it. It stays trusted if the user then opens a run that names it, too.
    _trusted.add(path)
    if not os.path.isfile(path):
        raise InputError(f"There is no file `{name}`.")
    status = os.stat(path)
    return _run_file(path, name, status.st_mtime_ns, status.st_size)


# Cached, because a rule is looked up at each of its calls; a changed `version` runs the file again.
@functools.cache
def _run_file(path: str, name: str, *version: int) -> ModuleType:
    # no other module has this name: a file `torch.py` leaves `import torch` alone
    number = zlib.crc32(os.fsencode(path))
    private = f"perdure_file_{number:08x}.{Path(name).stem}"
    spec = importlib.util.spec_from_file_location(private, path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[private] = module  # dataclasses look their module up there
    _loaded[path] = name
    try:
        spec.loader.exec_module(module)
    except SyntaxError as error:
        raise InputError(f"`{name}` is not Python: {error}.") from error
    except (Exception, SystemExit) as error:  # a file that ends the process would end a run
        reason = fault(error) or f"`{name}` cannot be run: {_said(error)}."
        raise InputError(reason) from error
    return module


def fault(error: BaseException) -> str | None:
    """Return where in a user's own Python file an error was raised; None if it was raised
    elsewhere.

    If an import or a hook fails, that is the last line reached in such a file.
    """
    frames = traceback.extract_tb(error.__traceback__)
    users = [frame for frame in frames if frame.filename in _loaded]
    if not users:
        return None
    last = users[-1]
    name = _loaded[last.filename]
    return f"`{name}`, line {last.lineno}: {_said(error)}."


def _said(error: BaseException) -> str:
    """Return an error's type and text on one line."""
    return " ".join(traceback.format_exception_only(error)[-1].split())
