"""Tables to predict on: CSV, TSV and JSON lines, read and written row by row as they are."""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from perdure.errors import DataError
from perdure.files import writing


def read_table(path: str | Path) -> list[dict[str, Any]]:
    """The rows of a CSV, TSV or JSON-lines file, as they are.

    Raises
    ------
    DataError
        There is no such file, or it is of another kind, not UTF-8, or broken.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise DataError(f"There is no file `{path}`.") from error
    except IsADirectoryError as error:
        raise DataError(f"`{path}` is a folder. Give a table: `.csv`, `.tsv` or `.jsonl`.") from error
    except UnicodeDecodeError as error:
        raise DataError(f"`{path}` is not written in UTF-8. Save it as UTF-8.") from error
    if path.suffix.lower() in (".csv", ".tsv"):
        csv.field_size_limit(2**31 - 1)  # the default refuses texts of more than 131,072 characters
        return list(csv.DictReader(io.StringIO(text, newline=""), delimiter=_delimiter(path)))
    if path.suffix.lower() in (".jsonl", ".json"):
        try:
            return [json.loads(line) for line in text.split("\n") if line.strip()]
        except json.JSONDecodeError as error:
            raise DataError(f"`{path}` is not JSON lines, one object a line ({error}).") from error
    raise DataError(f"`{path}` must end in `.csv`, `.tsv` or `.jsonl`.")


def check_free(path: str | Path) -> Path:
    """A path where a file can be written: in a folder that is there, and in the place of no other."""
    path = Path(path)
    if path.exists():
        raise DataError(f"`{path}` is there already. Remove it, or give another `--output`.")
    if not path.parent.is_dir():
        raise DataError(f"There is no folder `{path.parent}` to write into.")
    return path


def write_table(path: str | Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows as the file's ending says.

    Raises
    ------
    DataError
        There is such a file already: nothing is overwritten.
    """
    path = check_free(path)
    with writing(path, replace=False) as output:
        file = io.TextIOWrapper(output, "utf-8", newline="")
        if path.suffix.lower() in (".csv", ".tsv"):
            writer = csv.DictWriter(file, list(rows[0]), delimiter=_delimiter(path), lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
        else:
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        file.detach()


def _delimiter(path: Path) -> str:
    return "\t" if path.suffix.lower() == ".tsv" else ","
