"""Tables read row by row, without conversion: CSV, TSV, JSON Lines, JSON lists and Parquet.

In CSV and TSV, every cell is text. In JSON and Parquet, cells have types. If such a cell
is used as a class name, an integer is written in decimal digits, any other number as in
the JSON file (for Parquet, with the fewest digits that identify it), a boolean as `true`
or `false`, and a date in ISO 8601 format.
"""

import datetime
import decimal
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from perdure.data.table_files import Delimited, Json, Number, Parquet, Reader, check_file
from perdure.errors import DataError

ENDINGS = (".csv", ".tsv", ".jsonl", ".json", ".parquet")
HALF = "half of a surrogate pair, which is not a character. Write both halves, or remove it."


@dataclass(frozen=True)
class Row:
    """One row of a table.

    Attributes
    ----------
    number
        The number of the row, counted from 1, not including the header and blank lines.
    cells
        The cells by column: strings in CSV, typed values in JSON and Parquet. A JSON row
        has only the keys of its object, which may differ from those of other rows.
    where
        A description of the row for error messages.
    """

    number: int
    cells: dict[str, object]
    where: str


class Table:
    """A table in a file, read without loading all of its rows into memory.

    Attributes
    ----------
    columns
        The names in the header, or the keys of the first JSON object.
    class_names
        The class names that a Parquet file declares for its integer columns, by column name.

    Examples
    --------
    >>> path = Path(getfixture("tmp_path")) / "mail.csv"
    >>> _ = path.write_text("text;code\\nhello;007\\n")
    >>> table = Table.open(path)
    >>> table.columns, [row.cells for row in table.rows()]
    (['text', 'code'], [{'text': 'hello', 'code': '007'}])
    """

    def __init__(self, path: Path, reader: Reader):
        self.path = path
        self.reader = reader
        self.columns = reader.columns
        self.class_names = reader.class_names
        for name in self.columns:
            if self.columns.count(name) > 1:
                which = f"named `{name}`" if name else "without a name"
                raise DataError(
                    f"`{path}` has several columns {which}. Rename or remove all but one."
                )

    @classmethod
    def open(
        cls, path: str | os.PathLike[str], *, encoding: str = "utf-8", delimiter: str | None = None
    ) -> "Table":
        """Open a table in the format that its file extension indicates.

        Parameters
        ----------
        path
            A file with the extension `.csv`, `.tsv`, `.jsonl`, `.json` or `.parquet`.
            Wildcards are not expanded.
        encoding
            The encoding of a text file. A UTF-8 byte order mark is dropped.
        delimiter
            The separator between cells of CSV and TSV. The default for `.tsv` is a tab.
            The default for `.csv` is whichever of comma, semicolon, tab and `|` splits
            the header into the most columns.

        Raises
        ------
        DataError
            The file does not exist, cannot be read, has another format, or has two
            columns with the same name.
        """
        path = Path(path)
        ending = path.suffix.lower()
        # Checked first: opening a pipe could block forever, and reading a device might never end.
        check_file(path)
        if ending == ".parquet":
            return cls(path, Parquet(path))
        if ending in (".json", ".jsonl"):
            return cls(path, Json(path, encoding))
        if ending == ".csv":
            return cls(path, Delimited(path, encoding, delimiter))
        if ending == ".tsv":
            return cls(path, Delimited(path, encoding, delimiter or "\t"))
        raise DataError(
            f"`{path}` is not a table that can be read: its name must end in {_listed(ENDINGS)}. "
            "Save it in one of these formats, not compressed."
        )

    def rows(self, columns: Sequence[str] | None = None) -> Iterator[Row]:
        """Yield the rows, each with at least the cells of `columns` (by default, of all columns).

        Raises
        ------
        DataError
            A row cannot be read. The message says which one.
        """
        for number, (line, cells) in enumerate(self.reader.rows(columns), start=1):
            # Both numbers are given: a spreadsheet counts rows, an editor counts lines.
            where = f"`{self.path}`, row {number}"
            if line is not None:
                where += f" (line {line})"
            yield Row(number, cells, where)

    def class_name(self, row: Row, column: str) -> str:
        """Return a cell as a class name (see the function `class_name`)."""
        return class_name(row, column, self.class_names.get(column))


def text(row: Row, column: str, *, empty: bool = False) -> str:
    """Return the text of a cell exactly as it is written.

    Parameters
    ----------
    empty
        If true, accept text that is empty or consists only of whitespace.

    Raises
    ------
    DataError
        The cell is missing or empty, is not text, or contains a NUL or an unpaired surrogate.
    """
    value = row.cells.get(column)
    # A missing cell is rejected even if empty texts are accepted, as its key may be misspelled.
    if value is None or (value == "" and not empty):
        raise DataError(
            f"{row.where}, has nothing in column `{column}`. Fill it in, or leave the row out."
        )
    if not isinstance(value, str):
        raise DataError(
            f"{row.where}, has {described(value)} in column `{column}`, "
            "where a text is expected. Write it as a text, or name another column."
        )
    if not empty and not value.strip():
        raise DataError(
            f"{row.where}, has nothing but whitespace in column `{column}`. Leave the row out."
        )
    check_characters(value, row, column)
    return value


def texts(row: Row, columns: Sequence[str], *, empty: bool = False) -> str | tuple[str, str]:
    """Return the input of a text model: one text, or a pair of texts from two columns.

    Raises
    ------
    DataError
        A cell is missing, empty (unless `empty` is true), or not text.
    """
    cells = [text(row, column, empty=empty) for column in columns]
    if len(cells) == 1:
        return cells[0]
    first, second, *_ = cells
    return first, second


def class_name(
    row: Row,
    column: str,
    names: Sequence[str] | None = None,
    *,
    expected: Literal["class", "text"] = "class",
) -> str:
    """Return a cell as a class name, or as text to be inserted into a template.

    Parameters
    ----------
    names
        The class names, if the cell may be an index into them.
    expected
        The purpose of the cell, for error messages.

    Raises
    ------
    DataError
        The cell is empty, is an index out of range, or has a type that cannot be a class name.
    """
    value = row.cells.get(column)
    # Checked, because the index -1 would return the last name; in data sets, it marks a
    # hidden label.
    if names is not None and isinstance(value, int):
        if not 0 <= value < len(names):
            raise DataError(
                f"{row.where}, has the class {value} in column `{column}`, which declares "
                f"{len(names)} classes, numbered from 0."
            )
        return names[value]
    if value is None or isinstance(value, str):
        # `text` also rejects an empty name, and characters that cannot be written to a file.
        return text(row, column)
    name = _written(value)
    if name is None:
        advice = "Write it as a text" if expected == "text" else "Write the name of one class"
        raise DataError(
            f"{row.where}, has {described(value)} in column `{column}`, "
            f"where a {expected} is expected. {advice}, or name another column."
        )
    return name


def _written(value: object) -> str | None:
    """Return a JSON or Parquet value as a class name, or None if it cannot be one."""
    # The order matters: in Python, `bool` is a subclass of `int`, and `Number` of `float`.
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Number):  # keeps its digits: `1.10` and `1.1` are different names
        return value.written
    if isinstance(value, int | float | decimal.Decimal):
        return str(value)
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    return None


def check_characters(value: str, row: Row, column: str) -> None:
    """Raise `DataError` if a text contains a NUL character or an unpaired surrogate."""
    # A NUL indicates a binary file, and tokenizers fail on unpaired surrogates.
    if "\0" in value:
        raise DataError(f"{row.where}, has a NUL character in column `{column}`. Remove it.")
    if half := half_of_a_pair(value):
        raise DataError(f"{row.where}, has `{half}` in column `{column}`: {HALF}")


def half_of_a_pair(text: str) -> str | None:
    """Return the first unpaired surrogate in a text as an escape sequence, or None.

    Examples
    --------
    >>> half_of_a_pair("a \\ud83d"), half_of_a_pair("a \\U0001f600")
    ('\\\\ud83d', None)
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        # JSON can contain half of a pair, which Python reads without complaint.
        half = text[error.start]
        return f"\\u{ord(half):04x}"
    return None


def described(value: object) -> str:
    """Describe a value for an error message, in terms of JSON and Parquet."""
    if isinstance(value, bool):
        return f"the truth value `{str(value).lower()}`"
    if isinstance(value, Number):
        return f"the number `{value.written}`"
    if isinstance(value, int | float | decimal.Decimal):
        return f"the number `{value}`"
    kinds = {
        list: "a list",
        tuple: "a list",
        dict: "an object",
        bytes: "bytes",
    }
    unknown = f"a value of type `{type(value).__name__}`"
    return kinds.get(type(value), unknown)


def _listed(names: Sequence[str]) -> str:
    *others, last = [f"`{name}`" for name in names]
    return f"{', '.join(others)} or {last}"
