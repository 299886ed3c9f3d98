"""Parsing of settings as users write them, and validation against a signature."""

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
from pydantic_core import ErrorDetails

from perdure import registry
from perdure.errors import CheckpointError, InputError, UnknownName
from perdure.storage import files

Section = str | dict[str, Any]
"""A section of a recipe: a name, or a mapping with a name and settings."""
SEEDS = 2**32  # NumPy and scikit-learn accept only smaller seeds; torch and Python accept larger
LARGEST = 2**63  # torch stores integers in 64 bits
UNLIMITED = "`max_grad_norm`"  # the one setting where infinity makes sense: no limit
SHORT = 100  # an error message quotes at most this many characters of a value
# pydantic's names for two kinds of error; each has one for models and one for functions
MISSING = ("missing", "missing_argument")
UNKNOWN = ("extra_forbidden", "unexpected_keyword_argument")


def section(name: str, settings: Sequence[str]) -> dict[str, object]:
    """Build a recipe section from a name and settings in the form `key=value`.

    Examples
    --------
    >>> section("task_arithmetic", ["scale=0.3"])
    {'name': 'task_arithmetic', 'scale': 0.3}
    """
    values: dict[str, object] = {"name": name}
    for setting in settings:
        put(values, setting)
    return values


def named(section: object, where: str, key: str = "name") -> tuple[str, dict[str, Any]]:
    """Split a recipe section into its name and its settings.

    Raises
    ------
    InputError
        The section is neither a name nor a mapping that contains one.
    """
    if isinstance(section, str):
        return section, {}
    if not isinstance(section, Mapping):
        raise InputError(
            f"`{where}` must be a name, or a mapping with `{key}` and settings, "
            f"got {_short(section)}."
        )
    options = dict(section)
    if key not in options:
        raise InputError(
            f"`{where}` needs `{key}`: give a name, or a mapping with `{key}` and settings."
        )
    name = options.pop(key)
    if not isinstance(name, str):
        raise InputError(f"`{where}`: `{key}` must be a string, got {_short(name)}.")
    return name, options


def checked(
    thing: Callable[..., object],
    options: Mapping[str, object],
    where: str,
    *,
    given: Collection[str] = (),
) -> dict[str, Any]:
    """Return the options, converted to the types of the keyword-only parameters of `thing`.

    Parameters
    ----------
    options
        The settings that the user gave. Only these are returned: defaults are not filled in.
    given
        Parameters that the caller passes to `thing` itself, so they are not required here.
    """
    fields: dict[str, tuple[object, object]] = {}
    for name, parameter in registry.options(thing).items():
        if name in given:
            continue
        default = parameter.default
        if default is inspect.Parameter.empty:
            default = ...  # pydantic's marker for a required field
        fields[name] = (parameter.annotation, default)
    return validated(fields, options, where)


def validated(
    fields: Mapping[str, Any], options: Mapping[str, object], where: str
) -> dict[str, Any]:
    """Return the given options, converted to the types of their fields, without any defaults.

    Parameters
    ----------
    fields
        The type and the default of each field.

    Raises
    ------
    InputError
        An option is unknown, missing, or of the wrong type.
    """
    kinds = {name: kind for name, (kind, _) in fields.items()}
    config = ConfigDict(extra="forbid", arbitrary_types_allowed=True)
    model = create_model("settings", __config__=config, **fields)
    # YAML allows numbers as keys; pydantic accepts only strings
    named_options = {str(name): value for name, value in options.items()}
    try:
        converted = model.model_validate(named_options)
    except ValidationError as error:
        raise sentence(error, where, kinds, options) from error
    values = {}
    for name, given in options.items():
        value = getattr(converted, name)
        check_numbers(given, value, f"{where}: `{name}`")
        values[name] = value
    return values


def kinds_of(model: type[BaseModel]) -> dict[str, object]:
    """Return the type of each field of a pydantic model, including its bounds."""
    kinds: dict[str, object] = {}
    for name, field in model.model_fields.items():
        # pydantic splits `Annotated` types, but `allowed` reads the bounds from such a
        # type. The trailing None is not a bound: `Annotated` requires at least one entry.
        kinds[name] = Annotated[field.annotation, *field.metadata, None]
    return kinds


def check_numbers(given: object, value: object, name: str) -> None:
    """Check the numbers in a setting, which was `given` and then converted to `value`.

    Raises
    ------
    InputError
        A boolean was given for a number, a number is infinite, undefined or too large to
        compute with, or a seed is not accepted by all random number generators.
    """
    if is_dataclass(value):
        value = vars(value)
    if isinstance(value, Mapping):
        if not isinstance(given, Mapping):
            return
        # only the keys that were given: a dataclass also has its defaults
        for key, entry_given in given.items():
            entry = value[key]
            check_numbers(entry_given, entry, f"{name}, `{key}`")
    elif isinstance(value, list | tuple) and isinstance(given, Collection):
        for before, entry in zip(given, value, strict=False):
            check_numbers(before, entry, name)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        _check_number(given, value, name)


def _check_number(given: object, value: float, name: str) -> None:
    # pydantic converts True to 1, so the value alone does not show it
    if isinstance(given, bool):
        raise InputError(
            f"{name} must be a number, got {given} (YAML reads `yes` and `no` as booleans, too)."
        )
    if isinstance(value, int):
        usable = abs(value) < LARGEST
    else:
        unlimited = name.endswith(UNLIMITED) and value == math.inf
        usable = math.isfinite(value) or unlimited
    if not usable:
        raise InputError(
            f"{name} must be a finite number small enough to compute with, got {_short(given)}."
        )
    if name.endswith("seed`"):
        check_seed(value, name)


def check_seed(seed: object, name: str = "`seed`") -> None:
    """Check that Python, NumPy, torch and scikit-learn all accept a seed.

    Raises
    ------
    InputError
        The seed is negative, too large, or not a whole number.
    """
    # in Python, True is an int
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < SEEDS:
        raise InputError(
            f"{name} must be a whole number from 0 to {SEEDS - 1}, got {_short(seed)}."
        )


def sentence(
    error: ValidationError,
    where: str,
    kinds: Mapping[str, object],
    values: Mapping[str, object],
) -> InputError:
    """Turn pydantic's error about `values` into an `InputError` with a one-sentence message.

    Parameters
    ----------
    kinds
        The type of each setting.
    """
    complaint = _deepest(error, kinds, values)
    keys = complaint["loc"]
    reason = complaint["type"]
    path, kind = _path(keys, kinds, values)
    if reason in MISSING:
        return InputError(f"{where} needs `{keys[-1]}`.")
    if reason in UNKNOWN:
        _, around = _path(keys[:-1], kinds, values)
        return _unknown(path, where, kinds, around)
    given = _short(complaint["input"])
    if not path:  # a key that is not a string: pydantic cannot say where it is
        return InputError(f"{where} has {given} as a name, which is not valid text.")
    name = ".".join(path)
    if reason == "value_error":  # raised by one of our validators, whose message is better
        words = str(complaint.get("ctx", {}).get("error"))
        return InputError(f"{where}: `{name}`: {words.rstrip('.')}.")
    return InputError(f"{where}: `{name}` is {given}, but must be {allowed(kind)}.")


def _deepest(
    error: ValidationError, kinds: Mapping[str, object], values: Mapping[str, object]
) -> ErrorDetails:
    """Return the first of pydantic's errors with the longest path.

    For a union, pydantic reports an error for every member that it tried. The one with
    the longest path is about the member that the user meant.
    """
    complaints = error.errors()
    depths = []
    for complaint in complaints:
        path, _ = _path(complaint["loc"], kinds, values)
        depths.append(len(path))
    return complaints[depths.index(max(depths))]


def _unknown(
    path: Sequence[str], where: str, kinds: Mapping[str, object], around: object
) -> UnknownName:
    """Return the error for an unknown setting; `around` is the type that contains it."""
    *above, name = path
    if not above:
        return UnknownName(f"setting of {where}", name, kinds)
    return UnknownName(f"setting of {where}: `{'.'.join(above)}`", name, entries(around))


def _path(
    keys: Sequence[int | str], kinds: Mapping[str, object], values: Mapping[str, object]
) -> tuple[list[str], object]:
    """Return the location of a pydantic error as a path of the user's keys, and the expected type.

    pydantic's path also names the members of a union that it tried, which users do not know.
    """
    path: list[str] = []
    kind: object = None
    value: Any = values
    for key in keys:
        if not _has(value, key):  # the name of a union member, not a key
            continue
        kind = inside(kind, key) if path else kinds.get(str(key))
        value = value[key]
        path.append(str(key))
    return path, kind


def _has(value: object, key: int | str) -> bool:
    """Return True if a mapping or a list has an entry `key`."""
    if isinstance(value, Mapping):
        return key in value
    if isinstance(value, list | tuple) and isinstance(key, int):
        return key < len(value)
    return False


def _short(value: object) -> str:
    """Return the `repr` of a value, truncated to `SHORT` characters."""
    text = repr(value)
    return text if len(text) <= SHORT else f"{text[:SHORT]}…"


def put(values: dict[str, Any], setting: str) -> None:
    """Apply a setting `a.b=value` to nested mappings, in place. The value is parsed as YAML."""
    path, equals, value = setting.partition("=")
    if not equals:
        raise InputError(f"`--set {setting}` must be `key=value`, such as `method.rank=4`.")
    *above, last = path.split(".")
    for key in above:
        inner = values.setdefault(key, {})
        if isinstance(inner, str):
            # a bare name, such as `method: isolated`, becomes a section that can have settings
            name_key = "model" if key == "backbone" else "name"
            inner = values[key] = {name_key: inner}
        if not isinstance(inner, dict):
            raise InputError(f"`--set {setting}`: `{key}` has no settings of its own.")
        values = inner
    try:
        values[last] = files.parse_yaml(value, f"`{value}`")
    except CheckpointError as error:
        raise InputError(f"`--set {setting}`: {error}") from error
    # whoever types a Python file on the command line trusts it
    registry.trust(values[last])


# -- descriptions of types, for messages that say what a setting may be

WORDS: dict[object, str] = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a string",
    type(None): "nothing",
    None: "nothing",
}
PLURALS = {
    "a whole number": "whole numbers",
    "a number": "numbers",
    "a string": "strings",
    "a mapping": "mappings",
}
BOUNDS: dict[type, tuple[str, str]] = {
    Ge: ("ge", "at least"),
    Gt: ("gt", "more than"),
    Le: ("le", "at most"),
    Lt: ("lt", "less than"),
}
"""For each kind of bound, the attribute that contains its value, and the words for a message."""
UNIONS = (typing.Union, types.UnionType)  # `Optional[X]` and `X | None` are two different types
LISTS = (list, tuple, Sequence)
MAPPINGS = (dict, Mapping)


def allowed(kind: object) -> str:
    """Describe in words which values a type allows.

    Examples
    --------
    >>> allowed(typing.Annotated[int, Ge(1)] | None), allowed(list[str] | str)
    ('a whole number of at least 1, or nothing', 'a list of strings or a string')
    """
    origin = typing.get_origin(kind)
    arguments = typing.get_args(kind)
    if origin is typing.Annotated:
        bare, *metadata = arguments
        return allowed(bare) + _limits(metadata)
    if origin is typing.Literal:
        return _choice([f"`{value}`" for value in arguments])
    if origin in UNIONS:
        return _choice([allowed(member) for member in arguments])
    if origin in LISTS:
        words = allowed(arguments[0])
        return f"a list of {PLURALS.get(words, words)}"
    if kind in MAPPINGS or origin in MAPPINGS or dataclasses.is_dataclass(kind):
        return "a mapping"
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return "a mapping"
    return WORDS.get(kind, f"of the type {getattr(kind, '__name__', kind)}")


def _limits(metadata: Sequence[object]) -> str:
    """Describe the bounds of an `Annotated` type, as in ` of at least 1 and at most 9`."""
    limits = []
    for bound in metadata:
        if type(bound) in BOUNDS:
            attribute, words = BOUNDS[type(bound)]
            limits.append(f"{words} {getattr(bound, attribute):g}")
    return f" of {' and '.join(limits)}" if limits else ""


def _choice(words: list[str]) -> str:
    """Join the descriptions of alternatives with `or`; `nothing` comes last, after a comma."""
    words = list(dict.fromkeys(words))
    rest = [word for word in words if word != "nothing"]
    if not rest:
        return "nothing"
    *first, last = rest
    choice = f"{', '.join(first)} or {last}" if first else last
    if "nothing" in words:
        return f"{choice}, or nothing"
    return choice


def inside(kind: object, key: int | str) -> object:
    """Return the type of the entry `key` in a value of type `kind`; None if not found."""
    origin = typing.get_origin(kind)
    arguments = typing.get_args(kind)
    if origin is typing.Annotated:
        return inside(arguments[0], key)
    if origin in UNIONS:
        for member in arguments:
            entry = inside(member, key)
            if entry is not None:
                return entry
        return None
    if origin in LISTS and isinstance(key, int):
        return arguments[0]
    if origin in MAPPINGS and not isinstance(key, int):
        return arguments[1]
    if dataclasses.is_dataclass(kind) and isinstance(key, str):
        hints = typing.get_type_hints(kind, include_extras=True)
        return hints.get(key)
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return kinds_of(kind).get(str(key))
    return None


def entries(kind: object) -> list[str]:
    """Return the names of a dataclass's fields, or of the fields of all dataclasses in a union.

    The list is empty for other types, such as mappings that allow any name.
    """
    names: list[str] = []
    if typing.get_origin(kind) in UNIONS:
        for argument in typing.get_args(kind):
            names += entries(argument)
    elif dataclasses.is_dataclass(kind):
        names += [field.name for field in dataclasses.fields(kind)]
    return names
