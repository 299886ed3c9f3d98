"""What stands in a run folder, as what may be shown anywhere: values of JSON, and text that only says something."""

import math
from collections.abc import Mapping
from typing import Any

from perdure.errors import printable


def plain(value: Any) -> Any:
    """Lists, dicts, texts in which control characters are spelled out, and finite numbers (None for others).

    Examples
    --------
    >>> plain({"seconds": float("nan"), "name": "a\\x1b[31m"})
    {'seconds': None, 'name': 'a\\\\x1b[31m'}
    """
    if isinstance(value, Mapping):
        return {clean(str(key)): plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if value is None or isinstance(value, bool | int | float) else clean(str(value))


def clean(text: str) -> str:
    """Return a text that may have several lines and columns, and nothing else that acts on a terminal."""
    return printable(text, keep="\n\t")
