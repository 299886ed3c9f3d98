"""JSON files of published benchmarks."""

import json
from pathlib import Path
from typing import Any

from perdure.errors import DataError


def read_list(path: Path) -> list[Any]:
    """Return the list in a JSON file.

    Raises
    ------
    DataError
        The file is missing or damaged, or holds something else.
    """
    value = _read(path)
    if not isinstance(value, list):
        raise DataError(f"`{path}` must hold a list.")
    return value


def read_object(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file.

    Raises
    ------
    DataError
        The file is missing or damaged, or holds something else.
    """
    value = _read(path)
    if not isinstance(value, dict):
        raise DataError(f"`{path}` must hold an object, with a value for each name.")
    return value


def _read(path: Path) -> object:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"`{path}` cannot be read: {error}.") from error
