"""What stands in a run folder, as what may be shown anywhere: values of JSON, and text that only says something."""

import math
import unicodedata
from collections.abc import Mapping
from typing import Any

JOINERS = "\u200c\u200d"  # they shape letters of Persian, and emoji


def plain(value: Any) -> Any:
    """Lists, dicts, texts without control characters, and finite numbers (None for others).

    Examples
    --------
    >>> plain({"seconds": float("nan"), "name": "a\\x1b[31m"})
    {'seconds': None, 'name': 'a[31m'}
    """
    if isinstance(value, Mapping):
        return {clean(str(key)): plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if value is None or isinstance(value, bool | int | float) else clean(str(value))


def clean(text: str) -> str:
    """Text without characters that would colour a terminal, or turn the rest of a line around."""
    return "".join(c for c in text if c in "\n\t" + JOINERS or unicodedata.category(c) not in ("Cc", "Cf"))
