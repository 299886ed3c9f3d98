"""The file name is the registry: methods, rules and benchmarks are found, not listed.

A name is looked up as a file of `perdure/methods`, `perdure/merging` or `perdure/benchmarks`, as an entry point
of the group `perdure.methods` (`perdure.merging`, `perdure.benchmarks`) of another package, or as a path
to a Python file (`./mine.py`; see `perdure.own_code`).
"""

import contextlib
import functools
import importlib
import inspect
import pkgutil
from collections.abc import Callable
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

from perdure import own_code
from perdure.errors import InputError, UnknownName

Kind = Literal["method", "rule", "benchmark"]
PACKAGES: dict[Kind, str] = {
    "method": "perdure.methods",
    "rule": "perdure.merging",
    "benchmark": "perdure.benchmarks",
}


def names(kind: Kind) -> list[str]:
    """The names of all methods, rules or benchmarks that are installed."""
    package = importlib.import_module(PACKAGES[kind])
    files = {module.name for module in pkgutil.iter_modules(package.__path__) if not module.name.startswith("_")}
    return sorted(files | {point.name for point in _of_others(kind)})


@functools.cache
def _of_others(kind: Kind) -> tuple[EntryPoint, ...]:
    """What other packages bring: to look through all that are installed takes as long as some steps of training."""
    return tuple(entry_points(group=PACKAGES[kind]))


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
        return _take(kind, own_code.load(name), Path(name).stem)
    if name not in names(kind):
        raise UnknownName(kind, name, names(kind))
    for point in _of_others(kind):
        if point.name == name:
            return point.load()
    return _take(kind, importlib.import_module(f"{PACKAGES[kind]}.{name}"), name)


def _take(kind: Kind, module: ModuleType, name: str) -> Callable[..., Any]:
    """A method is the one class of its file that has the hooks; rules and benchmarks are named as their file."""
    own = [value for value in vars(module).values() if getattr(value, "__module__", None) == module.__name__]
    if kind == "method":
        found = [value for value in own if inspect.isclass(value) and hasattr(value, "begin")]
    else:
        found = [value for value in own if inspect.isfunction(value) and value.__name__ == name]
    if len(found) != 1:
        wanted = "one class derived from `perdure.Method`" if kind == "method" else f"a function `{name}`"
        raise InputError(f"`{module.__file__}` must hold {wanted}; it holds {len(found)}.")
    return found[0]


def options(thing: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """The settings of a method, rule or benchmark: its keyword-only parameters, with their types and defaults."""
    signature = inspect.signature(thing, eval_str=True)
    return {name: p for name, p in signature.parameters.items() if p.kind is inspect.Parameter.KEYWORD_ONLY}


def summary(thing: Callable[..., Any]) -> str:
    """The first sentence of its docstring."""
    return (inspect.getdoc(thing) or "").split("\n\n")[0].replace("\n", " ")


def about(name: str) -> dict[str, Any]:
    """What a method, rule or benchmark does, and its settings with their defaults."""
    kinds: list[Kind] = [kind for kind in PACKAGES if name.endswith(".py") or name in names(kind)]
    if not kinds:
        raise UnknownName("method, rule or benchmark", name, {each for kind in PACKAGES for each in names(kind)})
    thing, kind = _first(kinds, name)
    settings = {
        key: "needed" if p.default is inspect.Parameter.empty else repr(p.default) for key, p in options(thing).items()
    }
    nature = getattr(thing, "nature", None)  # of a rule
    declared = f"\n\n{nature.order.capitalize()}. Kept for the next task: {nature.state}." if nature else ""
    return {"kind": kind, "name": name, "text": (inspect.getdoc(thing) or "") + declared, "settings": settings}


def _first(kinds: list[Kind], name: str) -> tuple[Callable[..., Any], Kind]:
    """A file may hold any kind: the first that it does."""
    for kind in kinds[:-1]:
        with contextlib.suppress(InputError):
            return find(kind, name), kind
    return find(kinds[-1], name), kinds[-1]
