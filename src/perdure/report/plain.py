"""Values of a run folder in a form that is safe to show anywhere: JSON, and harmless text."""

import math
from collections.abc import Mapping
from typing import Any

from perdure.errors import printable

Record = dict[str, Any]
"""A JSON object: a run, a result, an event. Its keys are those of the files and of the report."""
Summary = Mapping[str, Any]
"""A report's dict, as `perdure.report.summary` makes it."""


def plain(value: object) -> Any:
    """Return lists, dicts, text with control characters spelled out, and finite numbers.

    Numbers that are not finite become None, because JSON cannot represent them.

    Examples
    --------
    >>> plain({"seconds": float("nan"), "name": "a\\x1b[31m"})
    {'seconds': None, 'name': 'a\\\\x1b[31m'}
    """
    if isinstance(value, Mapping):
        # Keys of YAML may be anything, those of JSON are text.
        return {clean(str(key)): plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if value is None or isinstance(value, bool | int | float):
        return value
    # What else YAML knows, such as dates, becomes text.
    return clean(str(value))


def clean(text: str) -> str:
    """Return the text without terminal control characters, but with its line breaks and tabs."""
    return printable(text, keep="\n\t")
