"""Conversion of values from a run folder to JSON and text that are safe to show anywhere."""

import math
from collections.abc import Mapping
from typing import Any

from perdure.errors import clean

Record = dict[str, Any]
"""A JSON object from a file or a report, such as a run, a result or an event."""
Summary = Mapping[str, Any]
"""The dict of a report, as returned by `perdure.report.summary.summarise`."""


def plain(value: object) -> Any:
    """Convert a value to dicts, lists, finite numbers, and text with escaped control characters.

    Infinite and undefined numbers become None, because JSON cannot represent them.

    Examples
    --------
    >>> plain({"seconds": float("nan"), "name": "a\\x1b[31m"})
    {'seconds': None, 'name': 'a\\\\x1b[31m'}
    """
    if isinstance(value, Mapping):
        # The keys of YAML may be anything, those of JSON must be strings.
        return {clean(str(key)): plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if value is None or isinstance(value, bool | int | float):
        return value
    # Other values that YAML supports, such as dates, become text.
    return clean(str(value))
