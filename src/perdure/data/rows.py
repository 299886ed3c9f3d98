"""Tables, read row by row as they are written: CSV, TSV, JSON lines, JSON lists and Parquet.

A cell of CSV is its text. In JSON and Parquet a cell has a type. As the name of a class it is
written in one way: a whole number by its digits, another number as the JSON file writes it (in
Parquet the shortest digits that mean it), a truth value as `true` or `false`, a date in ISO 8601.
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
        The number of the row, counted from 1, without the header and blank lines.
    cells
        The cells by column: texts of CSV, values of JSON and Parquet. A row of JSON has the keys
        of its own object.
    where
        The row as messages name it.
    """

    number: int
    cells: dict[str, object]
    where: str


class Table:
    """A table in a file, which is read without having all of its rows in memory.

    Attributes
    ----------
    columns
        The names in the header, or the keys of the first JSON object.
    class_names
        The names that a Parquet file declares for the numbers in a column, for each such column.

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
                which = f"of the name `{name}`" if name else "without a name"
                raise DataError(
                    f"`{path}` has several columns {which}. Rename or remove all but one."
                )

    @classmethod
    def open(
        cls, path: str | os.PathLike[str], *, encoding: str = "utf-8", delimiter: str | None = None
    ) -> "Table":
        """Open a table; its file extension says which format it has.

        Parameters
        ----------
        path
            A file that ends in `.csv`, `.tsv`, `.jsonl`, `.json` or `.parquet`. No character in
            it is a wildcard.
        encoding
            The encoding of a text file. A byte order mark of UTF-8 is dropped.
        delimiter
            What separates the cells of CSV and TSV. By default it is a tab in `.tsv`, and in `.csv`
            whichever of comma, semicolon, tab and `|` splits the header into the most columns.

        Raises
        ------
        DataError
            The file does not exist, is of another kind, or has two columns of one name.
        """
        path = Path(path)
        ending = path.suffix.lower()
        # First of all: to open a pipe would wait for ever, and a device may never end.
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
        """Yield the rows, with at least the cells of `columns` (by default of all).

        Raises
        ------
        DataError
            A row cannot be read; the message names it.
        """
        for number, (line, cells) in enumerate(self.reader.rows(columns), start=1):
            # Both numbers: a spreadsheet counts rows, an editor lines.
            where = f"`{self.path}`, row {number}"
            if line is not None:
                where += f" (line {line})"
            yield Row(number, cells, where)

    def class_name(self, row: Row, column: str) -> str:
        """Return the class that a cell names; see `class_name`."""
        return class_name(row, column, self.class_names.get(column))


def text(row: Row, column: str, *, empty: bool = False) -> str:
    """Return a cell that is a text, exactly as it is written.

    Parameters
    ----------
    empty
        Accept an empty text, and a text of white space alone.

    Raises
    ------
    DataError
        The cell is missing or empty, is not a text, or holds a NUL or half of a surrogate pair.
    """
    value = row.cells.get(column)
    # A missing cell is refused even where empty texts are accepted: its key may be misspelled.
    if value is None or (value == "" and not empty):
        raise DataError(
            f"{row.where}, has nothing in column `{column}`. Complete it or leave it out."
        )
    if not isinstance(value, str):
        raise DataError(
            f"{row.where}, has {described(value)} in column `{column}`, "
            "where a text is expected. Write it as a text, or name another column."
        )
    if not empty and not value.strip():
        raise DataError(
            f"{row.where}, has nothing but white space in column `{column}`. Leave it out."
        )
    check_characters(value, row, column)
    return value


def texts(row: Row, columns: Sequence[str], *, empty: bool = False) -> str | tuple[str, str]:
    """Return the input of a text model: the text of one column, or the pair of texts of two.

    Raises
    ------
    DataError
        A cell is not a text.
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
    """Return the name of the class that a cell holds, or a cell that becomes part of a text.

    Parameters
    ----------
    names
        The names of the classes, if the cell may be an index into them.
    expected
        What the cell is for, in messages.

    Raises
    ------
    DataError
        The cell is empty, or of a type that names no class.
    """
    value = row.cells.get(column)
    # Checked, because a list takes -1 for its last name; in data sets it means a secret label.
    if names is not None and isinstance(value, int):
        if not 0 <= value < len(names):
            raise DataError(
                f"{row.where}, has the class {value} in column `{column}`, which declares "
                f"{len(names)} classes, numbered from 0."
            )
        return names[value]
    if value is None or isinstance(value, str):
        # `text` also refuses an empty name, and one that no file can hold.
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
    """Write a value of JSON or Parquet as the name of a class; return `None` if it names none."""
    # The order matters: in Python a truth value is a whole number, and `Number` is a float.
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Number):  # its digits: `1.10` and `1.1` are different names
        return value.written
    if isinstance(value, int | float | decimal.Decimal):
        return str(value)
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    return None


def check_characters(value: str, row: Row, column: str) -> None:
    """Raise `DataError` if a text holds a NUL or half of a surrogate pair."""
    # A NUL is a sign of a binary file; on half of a pair tokenizers fail.
    if "\0" in value:
        raise DataError(f"{row.where}, has a NUL character in column `{column}`. Remove it.")
    if half := half_of_a_pair(value):
        raise DataError(f"{row.where}, has `{half}` in column `{column}`: {HALF}")


def half_of_a_pair(text: str) -> str | None:
    """Return the first unpaired surrogate in a text, as an escape sequence, if there is one.

    Examples
    --------
    >>> half_of_a_pair("a \\ud83d"), half_of_a_pair("a \\U0001f600")
    ('\\\\ud83d', None)
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        # JSON can write half of a pair, and Python reads it without complaint.
        half = text[error.start]
        return f"\\u{ord(half):04x}"
    return None


def described(value: object) -> str:
    """Describe a value's type in the terms of JSON and Parquet."""
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
