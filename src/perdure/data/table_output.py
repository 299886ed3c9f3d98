"""Tables written row by row, in the format that the file extension indicates.

The formats are those that `perdure.data.rows` reads. Cells are written as they were read,
including the digits of JSON numbers, and lists or objects inside a row. In CSV, where
every cell is text, other values are written as JSON.
"""

import contextlib
import csv
import datetime
import decimal
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from perdure.data.rows import ENDINGS, Table
from perdure.data.table_files import Delimited, Number, Parquet
from perdure.errors import DataError
from perdure.storage.files import check_place

FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")
"""The initial characters by which spreadsheets recognise formulas.

In East Asian locales, the full-width forms have the same effect as the usual ones.
"""
PLAIN_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", flags=re.ASCII)
WHOLE = range(-(2**63), 2**63)
"""The integers that fit into a Parquet column."""

Cells = Mapping[str, object]


def check_output(path: Path) -> None:
    """Check that a path has a known extension, and that a new table can be written there.

    Raises
    ------
    DataError
        No format has this extension, or the folder does not exist.
    OutputError
        The path already exists.
    """
    if path.suffix.lower() not in ENDINGS:
        listed = ", ".join(f"`{ending}`" for ending in ENDINGS)
        raise DataError(
            f"`{path}` cannot be written as a table: its name must end in one of {listed}."
        )
    if not path.parent.is_dir():
        raise DataError(f"There is no folder `{path.parent}` to write into.")
    check_place(path, replace=False)


def safe_in_spreadsheets(text: str) -> str:
    """Return a text in a form that no spreadsheet interprets as a formula.

    A spreadsheet would evaluate a formula when the table is opened. A text that looks
    like one is prefixed with an apostrophe, the usual escape character in spreadsheets.
    Numbers are not changed, even if they start with a sign.

    Examples
    --------
    >>> [safe_in_spreadsheets(text) for text in ("=1+1", "-1", "-1+1", "sport")]
    ["'=1+1", '-1', "'-1+1", 'sport']
    """
    if text.startswith(FORMULA) and not PLAIN_NUMBER.fullmatch(text):
        return f"'{text}"
    return text


class DelimitedOutput:
    """A writer for CSV or TSV in UTF-8, with a header.

    `made` lists the columns that perdure adds; their cells are made safe for
    spreadsheets. The columns of the input are written unchanged.
    """

    def __init__(self, file: BinaryIO, columns: Sequence[str], delimiter: str, made: Sequence[str]):
        self._columns = columns
        self._made = made
        self._writer = csv.writer(
            _Utf8(file),
            delimiter=delimiter,
            lineterminator="\n",  # the default is the line ending of Windows
        )
        self._writer.writerow(columns)

    def write(self, rows: Sequence[Cells]) -> None:
        """Append rows to the file."""
        for row in rows:
            cells = [self._cell(row, name) for name in self._columns]
            self._writer.writerow(cells)

    def _cell(self, row: Cells, name: str) -> str:
        value = row.get(name)
        if value is None:
            return ""
        if isinstance(value, str):
            text = value
        elif isinstance(value, datetime.date | datetime.time):
            text = value.isoformat()
        else:
            text = to_json(value)
        # The user's cells are not changed; class names may come from somebody else's run.
        return safe_in_spreadsheets(text) if name in self._made else text

    def close(self) -> None:
        """Do nothing, because all rows have already been written."""


class _Utf8:
    """A text wrapper around a binary file, for `csv` to write to.

    Unlike a `TextIOWrapper`, it never closes the binary file, and does not buffer.
    """

    def __init__(self, file: BinaryIO):
        self._file = file

    def write(self, text: str) -> None:
        # An unpaired surrogate, which JSON can contain, is written as an escape, as in JSON.
        self._file.write(text.encode("utf-8", errors="backslashreplace"))


class JsonOutput:
    """A writer for JSON objects, one per line or all in a list."""

    def __init__(self, file: BinaryIO, *, as_list: bool):
        self._file = file
        self._as_list = as_list
        self._between = b"[\n" if as_list else b""

    def write(self, rows: Sequence[Cells]) -> None:
        """Append rows to the file."""
        for row in rows:
            # Separators are written before rows, because JSON allows no comma after the last one.
            line = to_json(row).encode()
            self._file.write(self._between + line)
            self._between = b",\n" if self._as_list else b"\n"

    def close(self) -> None:
        """Finish the table, without closing the file."""
        self._file.write(b"\n]\n" if self._as_list else b"\n")


class ParquetOutput:
    """A Parquet writer with a fixed schema; each call to `write` adds a row group."""

    def __init__(self, file: BinaryIO, schema: pa.Schema):
        self._schema = schema
        self._writer = pq.ParquetWriter(file, schema)

    def write(self, rows: Sequence[Cells]) -> None:
        """Append rows to the file."""
        columns = []
        for field in self._schema:
            values = [row.get(field.name) for row in rows]
            # A column with values of several types is stored as strings (see `Types`).
            if pa.types.is_string(field.type):
                values = [_as_text(value) for value in values]
            columns.append(pa.array(values, field.type))
        table = pa.Table.from_arrays(columns, schema=self._schema)
        self._writer.write_table(table)

    def close(self) -> None:
        """Finish the table, without closing the file."""
        self._writer.close()


def _as_text(value: object) -> str | None:
    if value is None or isinstance(value, str):
        return value
    return to_json(value)


TableOutput = DelimitedOutput | JsonOutput | ParquetOutput


@contextlib.contextmanager
def table_output(
    file: BinaryIO, path: Path, table: Table, types: "Types", made: Mapping[str, pa.DataType]
) -> Iterator[TableOutput]:
    """Yield a table writer for an open file, in the format that the extension of `path` indicates.

    Parameters
    ----------
    table
        The table that the rows come from. CSV output uses its delimiter, and Parquet
        output its column types.
    types
        The types of the columns, inferred from all rows of the table.
    made
        The columns that are added, with their types.
    """
    output = _opened(file, path, table, types, made)
    try:
        yield output
    except BaseException:
        # A Parquet writer that is still open writes when it is garbage-collected, when
        # the file may already be closed. What it writes now does not matter: the file is
        # discarded anyway.
        with contextlib.suppress(Exception):
            output.close()
        raise
    output.close()


def _opened(
    file: BinaryIO, path: Path, table: Table, types: "Types", made: Mapping[str, pa.DataType]
) -> TableOutput:
    ending = path.suffix.lower()
    if ending in (".json", ".jsonl"):
        return JsonOutput(file, as_list=ending == ".json")
    if ending == ".parquet":
        return ParquetOutput(file, _schema(table, types, made))
    # A header must list all columns in advance; later JSON rows may have additional keys.
    names = [*table.columns, *types.columns, *made]
    columns = list(dict.fromkeys(names))
    delimiter = "\t" if ending == ".tsv" else ","
    # From CSV to CSV, the delimiter is preserved, because the user's programs expect it.
    if ending == table.path.suffix.lower() == ".csv" and isinstance(table.reader, Delimited):
        delimiter = table.reader.delimiter
    return DelimitedOutput(file, columns, delimiter, list(made))


def _schema(table: Table, types: "Types", made: Mapping[str, pa.DataType]) -> pa.Schema:
    if isinstance(table.reader, Parquet):
        fields = list(pq.read_schema(table.path))
    else:
        fields = []
        for name, kind in types.inferred().items():
            fields.append(pa.field(name, kind))
    for name, kind in made.items():
        fields.append(pa.field(name, kind))
    return pa.schema(fields)


def to_json(value: object) -> str:
    """Return a JSON or Parquet value as JSON text, preserving the digits of each number.

    Raises
    ------
    DataError
        The value has a type that JSON does not support, such as bytes.
    """
    # A subclass of `JSONEncoder` could not do this: it formats floats, including `Number`, itself.
    if isinstance(value, Number):
        return value.written
    if isinstance(value, Mapping):
        members = []
        for key, inner in value.items():
            name = _quoted(str(key))
            members.append(f"{name}: {to_json(inner)}")
        return "{" + ", ".join(members) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(to_json, value)) + "]"
    if isinstance(value, str):
        return _quoted(value)
    if isinstance(value, datetime.date | datetime.time):
        return _quoted(value.isoformat())
    if isinstance(value, decimal.Decimal):
        return str(value)
    if value is None or isinstance(value, bool | int | float):
        return json.dumps(value)
    raise DataError(
        f"A value of type `{type(value).__name__}` can only be written as Parquet. "
        "Give an `--output` that ends in `.parquet`."
    )


def _quoted(text: str) -> str:
    """Return a text as a JSON string, escaping as little as possible."""
    try:
        text.encode()
    except UnicodeEncodeError:  # half of a surrogate pair, which UTF-8 cannot write
        return json.dumps(text)
    return json.dumps(text, ensure_ascii=False)


class Types:
    """The Parquet types that the columns of a table require, inferred from its rows.

    Examples
    --------
    >>> types = Types()
    >>> types.see({"note": "hi", "stars": 5, "tags": ["a"]})
    >>> types.see({"note": None, "stars": 4.5, "tags": ["b"]})
    >>> {name: str(type) for name, type in types.inferred().items()}
    {'note': 'string', 'stars': 'double', 'tags': 'string'}
    """

    def __init__(self):
        self._seen: dict[str, set[str]] = {}

    def see(self, row: Cells) -> None:
        """Record the columns of a row and the types of its values."""
        for name, value in row.items():
            kinds = self._seen.setdefault(name, set())
            kinds.add(_kind(value))

    @property
    def columns(self) -> list[str]:
        """The columns of all rows, in order of first appearance."""
        return list(self._seen)

    def inferred(self) -> dict[str, pa.DataType]:
        """Return the Parquet type of each column.

        A column that contains lists, objects or values of incompatible types is stored as
        strings; values other than text are then written as JSON.
        """
        # Every Parquet type allows nulls, so a cell without a value says nothing about its type.
        types = {}
        for name, kinds in self._seen.items():
            types[name] = _type(kinds - {"nothing"})
        return types


def _kind(value: object) -> str:
    if value is None:
        return "nothing"
    if isinstance(value, bool):  # first, because `bool` is a subclass of `int`
        return "truth"
    if isinstance(value, int):
        return "whole" if value in WHOLE else "other"
    return "number" if isinstance(value, float) else "other"


def _type(kinds: set[str]) -> pa.DataType:
    if kinds == {"truth"}:
        return pa.bool_()
    if kinds == {"whole"}:
        return pa.int64()
    if kinds and kinds <= {"whole", "number"}:
        return pa.float64()
    return pa.string()
