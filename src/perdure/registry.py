"""The file name is the registry: methods, rules, benchmarks and bundled models are found, not listed.

A name is looked up as a file of `perdure/methods`, `perdure/rules`, `perdure/benchmarks` or `perdure/bundled`, as an
entry point of the group `perdure.methods` (`perdure.rules`, …) of another package, or as a path to a Python file
(`./mine.py`), which is run if it is trusted.

A run folder may come from a stranger, and may name such a file as well. Whoever reads names out of a run
folder says so (`named_by_run`): a file that only a run folder names is not run before the user says `trust`.
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
import zlib
from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

from perdure.errors import InputError, RunError, UnknownName

Kind = Literal["method", "rule", "benchmark", "model"]
PACKAGES: dict[Kind, str] = {
    "method": "perdure.methods",
    "rule": "perdure.rules",
    "benchmark": "perdure.benchmarks",
    "model": "perdure.bundled",
}
SHOWN: tuple[Kind, ...] = ("method", "rule", "benchmark")
"""The kinds that are listed and explained: a recipe gives them settings, which a model of `bundled` has not."""
DIAGNOSTICS = "perdure.report.diagnostics"
RULES_BEFORE = "perdure.merging"
"""The group of entry points that rules had first: what other packages name there is found as well."""


def names(kind: Kind) -> list[str]:
    """The names of all methods, rules, benchmarks or models that are installed."""
    package = importlib.import_module(PACKAGES[kind])
    files = {module.name for module in pkgutil.iter_modules(package.__path__) if not module.ispkg}
    return sorted(files | {point.name for point in _of_others(kind)})


@functools.cache
def _of_others(kind: Kind) -> tuple[EntryPoint, ...]:
    """What other packages bring: to look through all that are installed takes as long as some steps of training."""
    points = entry_points(group=PACKAGES[kind])
    if kind == "rule":
        points = (*points, *entry_points(group=RULES_BEFORE))
    return tuple(points)


def find(kind: Kind, name: str) -> Callable[..., Any]:
    """The method's class, or the rule's or benchmark's function, called `name`.

    Raises
    ------
    UnknownName
        There is none; the message names the nearest.
    InputError
        The file has none, or several methods; or it fails when it is run.
    RunError
        A run folder names the file, and nobody said that it is trusted.
    """
    if name.endswith(".py"):
        return _take(kind, _load(name), Path(name).stem)
    if name not in names(kind):
        raise UnknownName(kind, name, names(kind))
    for point in _of_others(kind):
        if point.name == name:
            return point.load()
    return _take(kind, importlib.import_module(f"{PACKAGES[kind]}.{name}"), name)


def _take(kind: Kind, module: ModuleType, name: str) -> Callable[..., Any]:
    """A method is the one class of its file that has the hooks; rules and benchmarks are named as their file."""
    own = [
        value
        for value in vars(module).values()
        if getattr(value, "__module__", None) == module.__name__
    ]
    if kind == "method":
        found = [value for value in own if inspect.isclass(value) and hasattr(value, "begin")]
    else:
        found = [value for value in own if inspect.isfunction(value) and value.__name__ == name]
    if len(found) != 1:
        wanted = (
            "one class derived from `perdure.Method`"
            if kind == "method"
            else f"a function `{name}`"
        )
        raise InputError(f"`{module.__file__}` must hold {wanted}; it holds {len(found)}.")
    return found[0]


def diagnostics() -> dict[str, Any]:
    """Return what each diagnostic declares, by its name, in the order in which they are shown.

    One is found like a method or a rule: by a file of `perdure/report/diagnostics`, and the file of the same name in
    `perdure/analysis` that computes it. Diagnostics are no kind that recipes name, so they are not among `names`.
    """
    package = importlib.import_module(DIAGNOSTICS)
    files = [module.name for module in pkgutil.iter_modules(package.__path__) if not module.ispkg]
    declared = {name: importlib.import_module(f"{DIAGNOSTICS}.{name}").DIAGNOSTIC for name in files}
    return dict(sorted(declared.items(), key=lambda item: item[1].position))


def options(thing: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """The settings of a method, rule or benchmark: its keyword-only parameters, with their types and defaults."""
    signature = inspect.signature(thing, eval_str=True)
    return {
        name: p
        for name, p in signature.parameters.items()
        if p.kind is inspect.Parameter.KEYWORD_ONLY
    }


def summary(thing: Callable[..., Any]) -> str:
    """The first sentence of its docstring."""
    return (inspect.getdoc(thing) or "").split("\n\n")[0].replace("\n", " ")


def about(name: str) -> dict[str, Any]:
    """What a method, rule or benchmark does, and its settings with their defaults."""
    kinds: list[Kind] = [kind for kind in SHOWN if name.endswith(".py") or name in names(kind)]
    if not kinds:
        raise UnknownName(
            "method, rule or benchmark", name, {each for kind in SHOWN for each in names(kind)}
        )
    thing, kind = _first(kinds, name)
    settings = {
        key: "needed" if p.default is inspect.Parameter.empty else repr(p.default)
        for key, p in options(thing).items()
    }
    nature = getattr(thing, "nature", None)  # of a rule
    declared = (
        f"\n\n{nature.order.capitalize()}. Kept for the next task: {nature.state}."
        if nature
        else ""
    )
    return {
        "kind": kind,
        "name": name,
        "text": (inspect.getdoc(thing) or "") + declared,
        "settings": settings,
    }


def _first(kinds: list[Kind], name: str) -> tuple[Callable[..., Any], Kind]:
    """A file may hold any kind: the first that it does."""
    for kind in kinds[:-1]:
        with contextlib.suppress(InputError):
            return find(kind, name), kind
    return find(kinds[-1], name), kinds[-1]


# -- Python files of the user's own

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


def _load(name: str) -> ModuleType:
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
    return _run_file(path, name, status.st_mtime_ns, status.st_size)


@functools.cache
def _run_file(path: str, name: str, *version: int) -> ModuleType:
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
