"""Settings as a user writes them: `key=value` put into mappings, and checked against a signature."""

import dataclasses
import inspect
import math
import types
import typing
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import is_dataclass
from typing import Annotated, Any

from annotated_types import Ge, Gt, Le, Lt
from pydantic import BaseModel, ConfigDict, ValidationError, create_model

from perdure import registry
from perdure.errors import CheckpointError, InputError, UnknownName
from perdure.storage import files

Section = str | dict[str, Any]
SEEDS = 2**32  # what NumPy and scikit-learn take; torch and Python take more
LARGEST = 2**63  # what torch takes as a whole number
UNLIMITED = "`max_grad_norm`"  # a limit, of which infinity is none


def section(name: str, settings: Sequence[str]) -> dict[str, Any]:
    """A section from a name and `key=value` texts.

    Examples
    --------
    >>> section("task_arithmetic", ["scale=0.3"])
    {'name': 'task_arithmetic', 'scale': 0.3}
    """
    values: dict[str, Any] = {"name": name}
    for setting in settings:
        put(values, setting)
    return values


def named(section: Any, where: str, key: str = "name") -> tuple[str, dict[str, Any]]:
    """Return a section's name, and its settings.

    Raises
    ------
    InputError
        It is neither a name nor a mapping with one.
    """
    if isinstance(section, str):
        return section, {}
    if not isinstance(section, Mapping):
        raise InputError(
            f"`{where}` must be a name, or a mapping of `{key}` and settings, got {_short(section)}."
        )
    options = dict(section)
    if key not in options:
        raise InputError(
            f"`{where}` needs `{key}`: write a name, or a mapping with `{key}` and settings."
        )
    name = options.pop(key)
    if not isinstance(name, str):
        raise InputError(f"`{where}`: `{key}` must be a text, got {_short(name)}.")
    return name, options


def checked(
    thing: Callable[..., Any],
    options: Mapping[str, Any],
    where: str,
    *,
    given: Collection[str] = (),
) -> dict[str, Any]:
    """The options, converted to the types of the keyword parameters of `thing`; only those that were given.

    What is `given` otherwise is not asked for.
    """
    fields: dict[str, Any] = {
        name: (p.annotation, ... if p.default is inspect.Parameter.empty else p.default)
        for name, p in registry.options(thing).items()
        if name not in given
    }
    return validated(fields, options, where)


def validated(fields: Mapping[str, Any], options: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Return the options, converted to the types of their fields; only those that were given.

    Parameters
    ----------
    fields
        The type and the default of each.

    Raises
    ------
    InputError
        One is unknown, missing, or not of its type.
    """
    kinds = {name: kind for name, (kind, _) in fields.items()}
    model: Any = create_model("settings", __config__=ConfigDict(extra="forbid"), **fields)
    try:
        found = model.model_validate({str(name): value for name, value in options.items()})
    except ValidationError as error:
        raise sentence(error, where, kinds, options) from error
    for name, value in options.items():
        check_numbers(value, getattr(found, name), f"{where}: `{name}`")
    return {name: getattr(found, name) for name in options}


def kinds_of(model: type[BaseModel]) -> dict[str, Any]:
    """Return the type of each field of a model, with its bounds."""
    fields = model.model_fields.items()
    return {name: Annotated[field.annotation, *field.metadata, None] for name, field in fields}


def check_numbers(given: Any, value: Any, name: str) -> None:
    """Check the numbers in a setting, as it was `given` and as the `value` that was made of it.

    Raises
    ------
    InputError
        A truth value was given for a number, a number is not finite or too great to compute with, or a
        seed is not one that all generators of random numbers take.
    """
    if is_dataclass(value):
        value = vars(value)
    if isinstance(value, Mapping):
        entries_given = given if isinstance(given, Mapping) else {}
        for key in entries_given:
            check_numbers(entries_given[key], value[key], f"{name}, `{key}`")
    elif isinstance(value, list | tuple):
        for before, entry in zip(given, value, strict=False):
            check_numbers(before, entry, name)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        _check_number(given, value, name)


def _check_number(given: Any, value: float, name: str) -> None:
    if isinstance(given, bool):
        raise InputError(
            f"{name} must be a number, got {given}, which YAML also makes of `yes` and `no`."
        )
    unlimited = name.endswith(UNLIMITED) and value == math.inf
    usable = abs(value) < LARGEST if isinstance(value, int) else math.isfinite(value)
    if not (usable or unlimited):
        raise InputError(
            f"{name} must be a finite number of a size to compute with, got {_short(given)}."
        )
    if name.endswith("seed`"):
        check_seed(value, name)


def check_seed(seed: Any, name: str = "`seed`") -> None:
    """Check that a seed is one that Python, NumPy, torch and scikit-learn take.

    Raises
    ------
    InputError
        It is not.
    """
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < SEEDS:
        raise InputError(
            f"{name} must be a whole number from 0 to {SEEDS - 1}, got {_short(seed)}."
        )


def sentence(
    error: ValidationError, where: str, kinds: Mapping[str, Any], values: Mapping[str, Any]
) -> InputError:
    """Return a complaint of pydantic about values as one of ours; `kinds` are the types of the settings."""
    # of a union it tries every member: the complaint that goes deepest is about what was meant
    first = max(error.errors(), key=lambda each: len(_path(each["loc"], kinds, values)[0]))
    path, kind = _path(first["loc"], kinds, values)
    if first["type"] in ("missing", "missing_argument"):
        return InputError(f"{where} needs `{first['loc'][-1]}`.")
    if first["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        *above, name = path
        outer = _path(first["loc"][:-1], kinds, values)[1]
        inner = f": `{'.'.join(above)}`" if above else ""
        return UnknownName(f"setting of {where}{inner}", name, entries(outer) if above else kinds)
    if not path:
        return InputError(f"{where} has {_short(first['input'])} as a name, which is no text.")
    name = ".".join(path)
    if first["type"] == "value_error":  # raised by a check of ours
        reason = str(first.get("ctx", {}).get("error")).rstrip(".")
        return InputError(f"{where}: `{name}`: {reason}.")
    return InputError(
        f"{where}: `{name}` is {_short(first['input'])}, but must be {allowed(kind)}."
    )


def _path(
    keys: Sequence[Any], kinds: Mapping[str, Any], values: Mapping[str, Any]
) -> tuple[list[str], Any]:
    """Return where a complaint is, by the keys that the user wrote, and the type of what should be there.

    pydantic's own path also names the members of a union that it tried, which no user knows.
    """
    path: list[str] = []
    kind, value = None, values
    for key in keys:
        if not _has(value, key):
            continue
        kind = inside(kind, key) if path else kinds.get(key)
        value = value[key]
        path.append(str(key))
    return path, kind


def _has(value: Any, key: Any) -> bool:
    """Whether a mapping or a list has an entry."""
    if isinstance(value, list | tuple):
        return isinstance(key, int) and key < len(value)
    return isinstance(value, Mapping) and key in value


def _short(value: Any) -> str:
    """Return a value as Python writes it, cut where nobody reads on."""
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:100]}…"


def put(values: dict[str, Any], setting: str) -> None:
    """Put `a.b=value` into nested mappings, as the user gave it. The value is read as YAML."""
    path, equals, value = setting.partition("=")
    if not equals:
        raise InputError(f"`--set {setting}` must be `key=value`, such as `method.rank=4`.")
    *above, last = path.split(".")
    for key in above:
        inner = values.setdefault(key, {})
        if isinstance(inner, str):  # a name alone
            inner = values[key] = {"model" if key == "backbone" else "name": inner}
        if not isinstance(inner, dict):
            raise InputError(f"`--set {setting}`: `{key}` has no settings of its own.")
        values = inner
    try:
        values[last] = files.parse_yaml(value, f"`{value}`")
    except CheckpointError as error:
        raise InputError(f"`--set {setting}`: {error}") from error
    registry.trust(values[last])


# -- a type as the words in which a sentence says what a setting may be

WORDS: dict[Any, str] = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a text",
    type(None): "nothing",
    None: "nothing",
}
PLURALS = {
    "a whole number": "whole numbers",
    "a number": "numbers",
    "a text": "texts",
    "a mapping": "mappings",
}
BOUNDS: dict[Any, tuple[str, str]] = {
    Ge: ("ge", "at least"),
    Gt: ("gt", "more than"),
    Le: ("le", "at most"),
    Lt: ("lt", "less than"),
}


def allowed(kind: Any) -> str:
    """Return the values of a type in words.

    Examples
    --------
    >>> allowed(typing.Annotated[int, Ge(1)] | None), allowed(list[str] | str)
    ('a whole number of at least 1, or nothing', 'a list of texts or a text')
    """
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Annotated:
        limits = [
            f"{word} {getattr(bound, name):g}" for bound, name, word in _bounds(arguments[1:])
        ]
        return allowed(arguments[0]) + (f" of {' and '.join(limits)}" if limits else "")
    if origin is typing.Literal:
        return _choice([f"`{value}`" for value in arguments])
    if origin in (typing.Union, types.UnionType):
        return _choice([allowed(argument) for argument in arguments])
    if origin in (list, tuple, Sequence):
        words = allowed(arguments[0])
        return f"a list of {PLURALS.get(words, words)}"
    if kind in (dict, Mapping) or origin in (dict, Mapping) or dataclasses.is_dataclass(kind):
        return "a mapping"
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return "a mapping"
    return WORDS.get(kind, f"of the type {getattr(kind, '__name__', kind)}")


def _bounds(limits: Sequence[Any]) -> list[tuple[Any, str, str]]:
    return [(limit, *BOUNDS[type(limit)]) for limit in limits if type(limit) in BOUNDS]


def _choice(words: list[str]) -> str:
    """Return several words as a choice; nothing stands at the end, behind a comma."""
    words = list(dict.fromkeys(words))
    last = [word for word in words if word == "nothing"]
    rest = [word for word in words if word != "nothing"]
    if not rest:
        return "nothing"
    said = f"{', '.join(rest[:-1])} or {rest[-1]}" if len(rest) > 1 else rest[0]
    return f"{said}, or nothing" if last else said


def inside(kind: Any, key: Any) -> Any:
    """Return the type of an entry in a value of some type; nothing if it has no entries."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Annotated:
        return inside(arguments[0], key)
    if origin in (typing.Union, types.UnionType):
        found = [inside(argument, key) for argument in arguments]
        return next((entry for entry in found if entry is not None), None)
    if origin in (list, tuple, Sequence) and isinstance(key, int):
        return arguments[0]
    if origin in (dict, Mapping) and not isinstance(key, int):
        return arguments[1]
    if dataclasses.is_dataclass(kind) and isinstance(key, str):
        return typing.get_type_hints(kind, include_extras=True).get(key)
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return kinds_of(kind).get(str(key))
    return None


def entries(kind: Any) -> list[str]:
    """Return the names of the settings in a mapping of some type; none if any will do."""
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        return [name for argument in typing.get_args(kind) for name in entries(argument)]
    return (
        [field.name for field in dataclasses.fields(kind)] if dataclasses.is_dataclass(kind) else []
    )
