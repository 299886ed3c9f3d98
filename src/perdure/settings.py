"""Settings as a user writes them: `key=value` put into mappings, and checked against a signature."""

import inspect
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError, create_model

from perdure import files, own_code, registry
from perdure.errors import CheckpointError, InputError, UnknownName

Section = str | dict[str, Any]


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


def named(section: Section, where: str, key: str = "name") -> tuple[str, dict[str, Any]]:
    """A section's name, and its settings."""
    if isinstance(section, str):
        return section, {}
    options = dict(section)
    if key not in options:
        raise InputError(f"`{where}` needs `{key}`: write a name, or a mapping with `{key}` and settings.")
    return str(options.pop(key)), options


def checked(
    thing: Callable[..., Any], options: Mapping[str, Any], where: str, *, given: Collection[str] = ()
) -> dict[str, Any]:
    """The options, converted to the types of the keyword parameters of `thing`; only those that were given.

    What is `given` otherwise is not asked for.
    """
    fields: dict[str, Any] = {
        name: (p.annotation, ... if p.default is inspect.Parameter.empty else p.default)
        for name, p in registry.options(thing).items()
        if name not in given
    }
    return validate(create_model("options", __config__=ConfigDict(extra="forbid"), **fields), options, where)


def validate(model: type[BaseModel], options: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The options as pydantic converts them, or its first complaint as an error of ours."""
    try:
        found = model.model_validate(dict(options))
    except ValidationError as error:
        raise sentence(error, where, model.model_fields) from error
    return {name: getattr(found, name) for name in options}


def sentence(error: ValidationError, where: str, known: Mapping[str, Any]) -> InputError:
    """pydantic's first complaint as one of ours."""
    first = error.errors()[0]
    name = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        return UnknownName(f"setting of {where}", name, known)
    if first["type"] == "missing":
        return InputError(f"{where} needs `{name}`.")
    got = first["input"]
    return InputError(f"{where}: `{name}` is {got!r}, but: {first['msg'][0].lower()}{first['msg'][1:]}.")


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
    own_code.trust(values[last])
