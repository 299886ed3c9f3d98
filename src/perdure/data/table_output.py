"""Tables, written row by row in the format that the file's ending says: what `perdure.data.rows` reads.

Cells stay as they were read: the digits of a JSON number, a list or an object inside a row. A cell of CSV is
text, so other values are written there as JSON writes them.
"""

import contextlib
import csv
import datetime
import decimal
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from perdure.data.rows import ENDINGS, Table
from perdure.data.table_files import Delimited, Number, Parquet
from perdure.errors import DataError
from perdure.storage.files import check_place

FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")
"""How a cell begins that spreadsheets take for a formula (of the wide forms, those of East Asian settings)."""
PLAIN_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", flags=re.ASCII)
WHOLE = range(-(2**63), 2**63)
"""The whole numbers that a column of Parquet can hold."""

Cells = Mapping[str, Any]


def check_output(path: Path) -> None:
    """Check that a table can be written to a path: its ending is known, and nothing is there yet.

    Raises
    ------
    DataError
        No format has this ending, or there is no such folder.
    OutputError
        Something is there.
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
    """Return a text that no spreadsheet takes for a formula, which would be run when somebody opens the table.

    An apostrophe is put before it, as people do in spreadsheets. A number is none, though it may begin with a sign.

    Examples
    --------
    >>> [safe_in_spreadsheets(text) for text in ("=1+1", "-1", "-1+1", "sport")]
    ["'=1+1", '-1', "'-1+1", 'sport']
    """
    if text.startswith(FORMULA) and not PLAIN_NUMBER.fullmatch(text):
        return f"'{text}"
    return text


class DelimitedOutput:
    """CSV or TSV, in UTF-8, with a header. `made` are columns of ours, which are kept safe in spreadsheets."""

    def __init__(self, file: BinaryIO, columns: Sequence[str], delimiter: str, made: Sequence[str]):
        self._columns = columns
        self._made = made
        self._writer = csv.writer(_Utf8(file), delimiter=delimiter, lineterminator="\n")
        self._writer.writerow(columns)

    def write(self, rows: Sequence[Cells]) -> None:
        """Write rows."""
        for row in rows:
            self._writer.writerow([self._cell(row, name) for name in self._columns])

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
        return safe_in_spreadsheets(text) if name in self._made else text

    def close(self) -> None:
        """Finish the table: nothing is left to do."""


class _Utf8:
    """What `csv` writes its lines to. Unlike a `TextIOWrapper` it never closes the file, or writes late."""

    def __init__(self, file: BinaryIO):
        self._file = file

    def write(self, text: str) -> None:
        # half of a surrogate pair, which JSON can hold, is written as JSON writes it
        self._file.write(text.encode("utf-8", errors="backslashreplace"))


class JsonOutput:
    """Objects, one a line, or all in a list."""

    def __init__(self, file: BinaryIO, *, as_list: bool):
        self._file = file
        self._as_list = as_list
        self._between = b"[\n" if as_list else b""

    def write(self, rows: Sequence[Cells]) -> None:
        """Write rows."""
        for row in rows:
            self._file.write(self._between + to_json(row).encode())
            self._between = b",\n" if self._as_list else b"\n"

    def close(self) -> None:
        """Finish the table; the file stays open."""
        self._file.write(b"\n]\n" if self._as_list else b"\n")


class ParquetOutput:
    """Parquet with the columns and types of a schema; a piece is written at a time."""

    def __init__(self, file: BinaryIO, schema: pa.Schema):
        self._schema = schema
        self._writer = pq.ParquetWriter(file, schema)

    def write(self, rows: Sequence[Cells]) -> None:
        """Write rows."""
        columns = []
        for field in self._schema:
            values = [row.get(field.name) for row in rows]
            if pa.types.is_string(field.type):
                values = [
                    value if value is None or isinstance(value, str) else to_json(value)
                    for value in values
                ]
            columns.append(pa.array(values, field.type))
        self._writer.write_table(pa.Table.from_arrays(columns, schema=self._schema))

    def close(self) -> None:
        """Finish the table; the file stays open."""
        self._writer.close()


TableOutput = DelimitedOutput | JsonOutput | ParquetOutput


@contextlib.contextmanager
def table_output(
    file: BinaryIO, path: Path, table: Table, types: "Types", made: Mapping[str, pa.DataType]
) -> Iterator[TableOutput]:
    """Write a table into an open file, in the format that the ending of `path` says.

    Parameters
    ----------
    table
        Where the rows come from. The delimiter of CSV, and the types of Parquet, stay as they are there.
    types
        Those of all its rows.
    made
        The columns that are added, with their types.
    """
    output = _opened(file, path, table, types, made)
    try:
        yield output
    except BaseException:
        # pyarrow writes when it is collected, should it still be open; the file is thrown away in any case
        with contextlib.suppress(Exception):
            output.close()
        raise
    output.close()


def _opened(
    file: BinaryIO, path: Path, table: Table, types: "Types", made: Mapping[str, pa.DataType]
) -> TableOutput:
    ending = path.suffix.lower()
    columns = list(dict.fromkeys([*table.columns, *types.columns, *made]))
    if ending in (".json", ".jsonl"):
        return JsonOutput(file, as_list=ending == ".json")
    if ending == ".parquet":
        return ParquetOutput(file, _schema(table, types, made))
    delimiter = "\t" if ending == ".tsv" else ","
    if (
        ending == ".csv"
        and isinstance(table.reader, Delimited)
        and table.path.suffix.lower() == ".csv"
    ):
        delimiter = table.reader.delimiter
    return DelimitedOutput(file, columns, delimiter, list(made))


def _schema(table: Table, types: "Types", made: Mapping[str, pa.DataType]) -> pa.Schema:
    if isinstance(table.reader, Parquet):
        fields = list(pq.read_schema(table.path))
    else:
        fields = [pa.field(name, kind) for name, kind in types.found().items()]
    return pa.schema([*fields, *(pa.field(name, kind) for name, kind in made.items())])


def to_json(value: Any) -> str:
    """Write a value of JSON or Parquet as JSON, with the digits of each number as they were read.

    Raises
    ------
    DataError
        It is of a type that JSON does not have, as bytes are.
    """
    if isinstance(value, Number):  # `json` would write the float that it is
        return value.written
    if isinstance(value, Mapping):
        return (
            "{"
            + ", ".join(f"{_quoted(str(key))}: {to_json(inner)}" for key, inner in value.items())
            + "}"
        )
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
        f"A value of type `{type(value).__name__}` can only be written as Parquet. Give an `--output` that ends in "
        "`.parquet`."
    )


def _quoted(text: str) -> str:
    """Write a text in quotes; one that UTF-8 cannot write (half a surrogate pair) with escapes."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return json.dumps(text)
    return json.dumps(text, ensure_ascii=False)


class Types:
    """The types of Parquet that the columns of a table need, as its rows are seen.

    Examples
    --------
    >>> types = Types()
    >>> types.see({"note": "hi", "stars": 5, "tags": ["a"]})
    >>> types.see({"note": None, "stars": 4.5, "tags": ["b"]})
    >>> {name: str(type) for name, type in types.found().items()}
    {'note': 'string', 'stars': 'double', 'tags': 'string'}
    """

    def __init__(self):
        self._seen: dict[str, set[str]] = {}

    def see(self, row: Cells) -> None:
        """Take note of a row's columns and the kinds of their values."""
        for name, value in row.items():
            self._seen.setdefault(name, set()).add(_kind(value))

    @property
    def columns(self) -> list[str]:
        """The columns of all rows, in the order in which they were first seen."""
        return list(self._seen)

    def found(self) -> dict[str, pa.DataType]:
        """Return the type of each column: one that holds several kinds, lists or objects is text, in JSON."""
        return {name: _type(kinds - {"nothing"}) for name, kinds in self._seen.items()}


def _kind(value: Any) -> str:
    if value is None:
        return "nothing"
    if isinstance(value, bool):
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
