"""Lookup of methods, rules, benchmarks, scores and models by name, without a central list.

A name refers to a file in `perdure/methods`, `perdure/rules`, `perdure/benchmarks`,
`perdure/evaluation/scores` or `perdure/bundled`, to an entry point that another package
declares in the group `perdure.methods` (`perdure.rules`, …), or to a Python file by its
path (`./mine.py`), which is run only if it is trusted.

A run folder may come from a stranger and may also name a Python file. Code that reads
names from a run folder must therefore register them with `named_by_run`: a file that is
named only by a run folder is not run until the user trusts it.
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

from perdure import declared
from perdure.declared import Declaration
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
"""The kinds that users can list and look up; bundled models and texts have no settings."""
DIAGNOSTICS = "perdure.report.diagnostics"
RULES_BEFORE = "perdure.merging"
"""The former name of the entry-point group for rules; packages may still use it."""

Thing = Callable[..., Any]
"""A method class, or the function of a rule or a benchmark."""


class About(TypedDict):
    """The return value of `about`, as the command line prints it."""

    kind: Kind
    name: str
    text: str
    settings: dict[str, str]


def names(kind: Kind) -> list[str]:
    """Return the sorted names of all methods (or rules, benchmarks, …) that are installed."""
    package = importlib.import_module(PACKAGES[kind])
    others = {point.name for point in _of_others(kind)}
    return sorted(_files(package) | others)


def _files(package: ModuleType) -> set[str]:
    """Return the names of a package's modules, without subpackages such as `parts`."""
    return {module.name for module in pkgutil.iter_modules(package.__path__) if not module.ispkg}


def _of_others(kind: Kind) -> tuple[EntryPoint, ...]:
    """Return the entry points of other packages for one kind, such as methods or rules."""
    by_group = _entry_points()
    points = by_group[PACKAGES[kind]]
    return (*points, *by_group[RULES_BEFORE]) if kind == "rule" else points


# Cached: reading the metadata of all installed packages takes as long as some training steps.
@functools.cache
def _entry_points() -> dict[str, tuple[EntryPoint, ...]]:
    installed = entry_points()
    groups = [*PACKAGES.values(), RULES_BEFORE]
    return {group: tuple(installed.select(group=group)) for group in groups}


def find(kind: Kind, name: str) -> Thing:
    """Return the class of the method, or the function of the rule or benchmark, called `name`.

    Raises
    ------
    UnknownName
        Nothing has that name; the message suggests the most similar one.
    InputError
        The Python file does not exist, raises an error, or does not define exactly one
        method (or a function with the name of the file).
    RunError
        The Python file was named by a run folder and is not trusted.
    """
    if name.endswith(".py"):
        return _take(kind, _load(name), Path(name).stem)
    known = names(kind)
    if name not in known:
        raise UnknownName(kind, name, known)
    # entry points come first, so that a package can replace one of ours under the same name
    for point in _of_others(kind):
        if point.name == name:
            _warn_of_replacement(kind, point)
            return point.load()
    return _take(kind, importlib.import_module(f"{PACKAGES[kind]}.{name}"), name)


# Cached, to warn only once per process: the same name is looked up many times.
@functools.cache
def _warn_of_replacement(kind: Kind, point: EntryPoint) -> None:
    """Warn if an entry point of another package has the same name as one of perdure's files."""
    package = importlib.import_module(PACKAGES[kind])
    if point.name in _files(package):
        other = point.dist.name if point.dist else point.value
        warnings.warn(
            f"The {kind} `{point.name}` comes from the package `{other}`, which replaces perdure's "
            "own. If this is not intended, uninstall the package or rename its entry point.",
            PerdureWarning,
            stacklevel=3,
        )


def _take(kind: Kind, module: ModuleType, name: str) -> Thing:
    """Return the method, rule or benchmark that a file defines.

    A method is the only class in its file that has a hook `begin`; a rule or a benchmark
    is the function with the same name as the file.
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
        raise InputError(f"`{module.__file__}` must define {needed}; it defines {len(things)}.")
    return things[0]


def diagnostics() -> dict[str, Any]:
    """Return the declaration of each diagnostic by name, in display order.

    Like a method or a rule, a diagnostic is found by its file: the one in
    `perdure/report/diagnostics` declares it, and the one of the same name in
    `perdure/analysis` computes it. Recipes do not name diagnostics, so `names` does not
    list them.
    """
    package = importlib.import_module(DIAGNOSTICS)
    declared = {}
    for name in sorted(_files(package)):
        module = importlib.import_module(f"{DIAGNOSTICS}.{name}")
        declared[name] = module.DIAGNOSTIC
    return dict(sorted(declared.items(), key=lambda item: item[1].position))


def diagnostic_names() -> list[str]:
    """Return the names of all diagnostics, without importing them, which takes seconds."""
    _, *inner = DIAGNOSTICS.split(".")
    folder = Path(__file__).parent.joinpath(*inner)
    modules = pkgutil.iter_modules([str(folder)])
    return [module.name for module in modules if not module.ispkg]


def options(thing: Callable[..., object]) -> dict[str, inspect.Parameter]:
    """Return the settings of a method, rule or benchmark, with their types and defaults.

    The settings are the keyword-only parameters of the class or function.
    """
    # with `from __future__ import annotations`, annotations are strings; `eval_str` evaluates them
    signature = inspect.signature(thing, eval_str=True)
    keyword_only = {}
    for name, parameter in signature.parameters.items():
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY:
            keyword_only[name] = parameter
    return keyword_only


def summary(thing: Callable[..., object]) -> str:
    """Return the first paragraph of an object's docstring, joined into one line."""
    return _first_paragraph(inspect.getdoc(thing) or "")


def _first_paragraph(docstring: str) -> str:
    paragraph, *_ = docstring.split("\n\n")
    return paragraph.replace("\n", " ")


def summaries(kind: Kind) -> dict[str, str]:
    """Return the summaries of all things of a kind, by name, if possible without importing them.

    The files import torch, which takes seconds; their docstrings can be read without it.
    """
    others = {point.name for point in _of_others(kind)}
    texts = {}
    for name in names(kind):
        text = None
        if name not in others:
            text = declared.docstring(f"{PACKAGES[kind]}.{name}", name)
        texts[name] = summary(find(kind, name)) if text is None else _first_paragraph(text)
    return texts


def about(name: str) -> About:
    """Describe a method, rule, benchmark or score, including its settings and their defaults."""
    kinds: list[Kind] = []
    known: set[str] = set()
    for kind in SHOWN:
        of_kind = names(kind)
        known.update(of_kind)
        if name.endswith(".py") or name in of_kind:
            kinds.append(kind)
    if not kinds:
        raise UnknownName("method, rule, benchmark or score", name, known)
    kind = kinds[0]  # a method and a rule may share a name
    declaration = _declaration(kind, name)
    if declaration is None:
        kind, declaration = _imported(kinds, name)
    settings = {}
    for key, default in declaration.settings.items():
        settings[key] = "needed" if default is None else default
    text = declaration.text
    if declaration.nature:  # only rules declare one
        order = str(declaration.nature["order"]).capitalize()
        text += f"\n\n{order}. Stored for the next task: {declaration.nature['state']}."
    return {
        "kind": kind,
        "name": name,
        "text": text,
        "settings": settings,
    }


def _declaration(kind: Kind, name: str) -> Declaration | None:
    """Return what one of perdure's own files declares; None if it must be imported to know."""
    others = {point.name for point in _of_others(kind)}
    if name.endswith(".py") or name in others:
        return None
    return declared.declaration(f"{PACKAGES[kind]}.{name}", name)


def _imported(kinds: list[Kind], name: str) -> tuple[Kind, Declaration]:
    """Return what a name's object declares, and its kind, after importing it."""
    thing, kind = _first(kinds, name)
    defaults = {}
    for key, parameter in options(thing).items():
        default = parameter.default
        defaults[key] = None if default is inspect.Parameter.empty else repr(default)
    nature = getattr(thing, "nature", None)
    properties = {"order": nature.order, "state": nature.state} if nature else {}
    return kind, Declaration(inspect.getdoc(thing) or "", defaults, properties)


def _first(kinds: list[Kind], name: str) -> tuple[Thing, Kind]:
    """Return the object that `name` refers to, and its kind: the first of the kinds that fits.

    If no kind fits, the error of the last one is raised.
    """
    for kind in kinds[:-1]:
        with contextlib.suppress(InputError):
            return find(kind, name), kind
    return find(kinds[-1], name), kinds[-1]


# -- the user's own Python files

_named_by_runs: dict[str, Path] = {}
"""The Python files named by run folders: each name as written there, with the first folder."""
_trusted: set[str] = set()
"""The absolute paths of the Python files that the user named, or trusted with `trust`."""
_loaded: dict[str, str] = {}
"""The Python files that were run: for the path shown in tracebacks, the name as it was given."""


def named_by_run(values: object, folder: Path) -> None:
    """Register the Python files that a run folder names; they are not run until trusted."""
    for name in python_files(values):
        _named_by_runs.setdefault(name, folder)


def trust(values: object) -> None:
    """Allow the Python files named in these settings to be run."""
    # absolute paths: trusting `./mine.py` does not extend to a file of that name elsewhere
    _trusted.update(os.path.abspath(name) for name in python_files(values))


def python_files(values: object) -> Iterator[str]:
    """Yield every string in nested mappings and lists that `find` would treat as a Python file."""
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
        The file does not exist, or raises an error.
    RunError
        The file was named by a run folder and is not trusted.
    """
    path = os.path.abspath(name)
    if name in _named_by_runs and path not in _trusted:
        raise RunError(
            f"`{_named_by_runs[name]}` names the Python file `{name}`, which would be run with all "
            "your permissions. If you trust whoever wrote the folder and the file, give `--trust` "
            "(in Python, `trust=True`)."
        )
    # The user named it. It stays trusted if the user then opens a run that also names it.
    _trusted.add(path)
    if not os.path.isfile(path):
        raise InputError(f"There is no file `{name}`.")
    status = os.stat(path)
    return _run_file(path, name, status.st_mtime_ns, status.st_size)


# Cached, because a rule is looked up each time it is called; a new `version` reruns the file.
@functools.cache
def _run_file(path: str, name: str, *version: int) -> ModuleType:
    # a name that no other module has: a file `torch.py` must not shadow `import torch`
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
    except (Exception, SystemExit) as error:  # `sys.exit` in the file must not end a run
        reason = fault(error) or f"`{name}` cannot be run: {_said(error)}."
        raise InputError(reason) from error
    return module


def fault(error: BaseException) -> str | None:
    """Describe where in a user's Python file an error was raised; return None if it was elsewhere.

    If code that the file called raised the error, the line is that of the call.
    """
    frames = traceback.extract_tb(error.__traceback__)
    users = [frame for frame in frames if frame.filename in _loaded]
    if not users:
        return None
    last = users[-1]
    name = _loaded[last.filename]
    return f"`{name}`, line {last.lineno}: {_said(error)}."


def _said(error: BaseException) -> str:
    """Return the type and the message of an error on one line."""
    return " ".join(traceback.format_exception_only(error)[-1].split())
