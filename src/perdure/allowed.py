"""A type as the words in which a sentence says what a setting may be."""

import dataclasses
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any

from annotated_types import Ge, Gt, Le, Lt

WORDS: dict[Any, str] = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a text",
    type(None): "nothing",
    None: "nothing",
}
PLURALS = {"a whole number": "whole numbers", "a number": "numbers", "a text": "texts", "a mapping": "mappings"}
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
        limits = [f"{word} {getattr(bound, name):g}" for bound, name, word in _bounds(arguments[1:])]
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
    return None


def entries(kind: Any) -> list[str]:
    """Return the names of the settings in a mapping of some type; none if any will do."""
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        return [name for argument in typing.get_args(kind) for name in entries(argument)]
    return [field.name for field in dataclasses.fields(kind)] if dataclasses.is_dataclass(kind) else []
