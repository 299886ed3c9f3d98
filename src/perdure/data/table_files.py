"""The files that hold tables: where rows are found in CSV, in JSON and in Parquet, one row at a time.

A reader has the `columns` of its file, the `class_names` that the file declares for some of them,
and yields rows as pairs of a line number (`None` where a file has no lines) and cells by column.
"""

import codecs
import csv
import json
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from pyarrow import ArrowException

from perdure.errors import DataError

MAX_LINE = 10_000_000  # characters of a line or a cell; War and Peace has 3.2 million
DELIMITERS = (",", ";", "\t", "|")
CHUNK = 1 << 16  # characters
PARQUET_ROWS = 1024  # read at once

Cells = tuple[int | None, dict[str, Any]]


def check_file(path: Path) -> None:
    """Refuse what is no regular file, before anything waits for a pipe or fills the memory.

    Raises
    ------
    DataError
        There is no such file, or it is a folder, a pipe, a device or a socket.
    """
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError) as error:
        raise DataError(f"There is no file `{path}`.") from error
    except OSError as error:
        raise DataError(f"`{path}` cannot be read: {error.strerror}.") from error
    except ValueError as error:  # a NUL character in the name
        raise DataError(f"{str(path)!r} cannot be the name of a file.") from error
    if stat.S_ISDIR(mode):
        raise DataError(f"`{path}` is a folder, not a table. Give a file.")
    if not stat.S_ISREG(mode):
        raise DataError(f"`{path}` is a pipe, a device or a socket, not a file. Save it as a file.")


def check_text_file(path: Path) -> None:
    """Refuse files of other formats that are named as if they were text.

    Raises
    ------
    DataError
        The file begins as an archive, an Excel workbook or a Parquet file does.
    """
    try:
        with path.open("rb") as file:
            beginning = file.read(4)
    except OSError as error:
        raise DataError(f"`{path}` cannot be read: {error.strerror}.") from error
    if beginning[:2] == b"\x1f\x8b":
        raise DataError(f"`{path}` is compressed with gzip. Unpack it first.")
    if beginning == b"PK\x03\x04":
        raise DataError(f"`{path}` is a ZIP archive or an Excel workbook. Save the table as CSV.")
    if beginning == b"PAR1":
        raise DataError(f"`{path}` is a Parquet file. Give it a name that ends in `.parquet`.")


def lines(path: Path, encoding: str) -> Iterator[str]:
    """Yield the lines of a text, each with its end, without a byte order mark.

    Raises
    ------
    DataError
        The text is not in this encoding, a line is too long or holds a NUL character.
    """
    number = 0
    try:
        with path.open(encoding=_codec(encoding), newline="") as file:
            while line := file.readline(MAX_LINE + 1):
                number += 1
                if "\0" in line:
                    raise DataError(
                        f"`{path}`, line {number}, holds a NUL character, so it is no text in {encoding}. "
                        "Save the table as UTF-8, or give its `encoding`."
                    )
                if len(line) > MAX_LINE:
                    raise DataError(
                        f"`{path}`, line {number}, has more than {MAX_LINE:,} characters."
                    )
                yield line
    except UnicodeError as error:
        if isinstance(error, UnicodeDecodeError):
            number += 1 + error.object[: error.start].count(
                b"\n"
            )  # of the block that was being decoded
        raise DataError(
            f"`{path}`, line {number}, is not written in {encoding}. Save the table as UTF-8, or give its `encoding`."
        ) from error
    except OSError as error:
        raise DataError(f"`{path}` cannot be read: {error.strerror}.") from error


def _codec(encoding: str) -> str:
    try:
        name = codecs.lookup(encoding).name
        b"".decode(encoding)  # refuses codecs such as `hex`, which make no text
    except (LookupError, ValueError) as error:
        raise DataError(f"There is no encoding `{encoding}`. Try `utf-8` or `latin-1`.") from error
    return "utf-8-sig" if name == "utf-8" else encoding


class Delimited:
    """A table with a header line: CSV with any delimiter, or TSV.

    Without a `delimiter`, the header decides: it is split by each of the usual ones, and the one
    that makes the most columns is taken, a comma if there is but one column.
    """

    def __init__(self, path: Path, encoding: str, delimiter: str | None):
        check_text_file(path)
        self.path = path
        self.encoding = encoding
        self.class_names: dict[str, list[str]] = {}
        if delimiter == "\\t":  # as a shell passes it on
            delimiter = "\t"
        if delimiter and (len(delimiter) > 1 or delimiter in '"\r\n'):
            raise DataError(
                f"`delimiter` is {delimiter!r}, but should be one character, such as `;`."
            )
        headers = self._headers([delimiter] if delimiter else DELIMITERS)
        self.delimiter = max(headers, key=lambda candidate: len(headers[candidate]))
        self.columns = headers[self.delimiter]

    def _headers(self, delimiters: Sequence[str]) -> dict[str, list[str]]:
        """Return what each delimiter makes of the header, without those that put quotes in wrong places."""
        headers = {}
        for delimiter in delimiters:
            try:
                headers[delimiter] = self._header(delimiter)
            except DataError as error:
                if not isinstance(error.__cause__, csv.Error):
                    raise
        return headers or {delimiters[0]: self._header(delimiters[0])}

    def rows(self, columns: Sequence[str] | None) -> Iterator[Cells]:
        """Yield each row below the header; blank lines are no rows."""
        records = self._records(self.delimiter)
        next(records)
        for number, (line, cells) in enumerate(records, start=1):
            if len(cells) != len(self.columns):
                raise DataError(self._uneven(number, line, len(cells)))
            yield line, dict(zip(self.columns, cells, strict=True))

    def _uneven(self, number: int, line: int, count: int) -> str:
        expected = len(self.columns)
        return (
            f"`{self.path}`, row {number} (line {line}), has {count} cell{'s' if count > 1 else ''}, "
            f"but the header has {expected}. Put texts that contain {self.delimiter!r} in quotes."
        )

    def _header(self, delimiter: str) -> list[str]:
        for _, cells in self._records(delimiter):
            return cells
        raise DataError(f"`{self.path}` is empty. Its first line must name the columns.")

    def _records(self, delimiter: str) -> Iterator[tuple[int, list[str]]]:
        """Yield the line on which each record begins, and its cells."""
        csv.field_size_limit(MAX_LINE)  # the default refuses texts of more than 131,072 characters
        line = 1
        try:
            # Only a strict reader notices a quote that is never closed, which swallows all that follows.
            reader = csv.reader(lines(self.path, self.encoding), delimiter=delimiter, strict=True)
            for cells in reader:
                if cells:
                    yield line, cells
                line = reader.line_num + 1
        except csv.Error as error:
            raise DataError(
                f"`{self.path}`, the row that begins on line {line}, is not CSV: {error}. "
                'A cell that begins with a quote must end with one, and quotes within it be doubled ("").'
            ) from error


class Number(float):
    """A JSON number that is not whole; `written` is how the file writes it: `1.10`, `1e5`."""

    written: str

    def __new__(cls, written: str):
        number = super().__new__(cls, written)
        number.written = written
        return number


class Json:
    """Objects in a JSON file: one on each line, or all in a list. A column is a key of the objects."""

    def __init__(self, path: Path, encoding: str):
        check_text_file(path)
        self.path = path
        self.encoding = encoding
        self.class_names: dict[str, list[str]] = {}
        self.decoder = json.JSONDecoder(parse_float=Number, object_pairs_hook=_without_twins)
        self.is_list = self._first_character() == "["
        first = next(self.rows(None), None)
        if first is None:
            raise DataError(
                f"`{path}` holds an empty list. It must hold objects, one for each row."
            )
        self.columns = list(first[1])

    def _first_character(self) -> str:
        for line in lines(self.path, self.encoding):
            if line.strip():
                return line.lstrip()[0]
        raise DataError(f"`{self.path}` is empty. It must hold objects, one on each line.")

    def rows(self, columns: Sequence[str] | None) -> Iterator[Cells]:
        """Yield each object."""
        values = self._from_list() if self.is_list else self._from_lines()
        for number, (line, value) in enumerate(values, start=1):
            if not isinstance(value, dict):
                raise DataError(
                    f'`{self.path}`, row {number}, is no object with columns such as {{"text": "…", "label": "…"}}.'
                )
            yield line, value

    def _from_lines(self) -> Iterator[tuple[int | None, Any]]:
        for number, line in enumerate(lines(self.path, self.encoding), start=1):
            if not line.strip():
                continue
            try:
                yield number, self.decoder.decode(line.rstrip())
            except (ValueError, RecursionError) as error:
                raise DataError(
                    f"`{self.path}`, line {number}, is not JSON: {_reason(error)}. "
                    "Write one object on each line, or a list of objects."
                ) from error

    def _from_list(self) -> Iterator[tuple[int | None, Any]]:
        """Decode one object after the other: the list may be larger than the memory."""
        text = _Buffer(lines(self.path, self.encoding))
        text.skip("[")
        number = 0
        while text.next_character() != "]":
            number += 1
            try:
                yield None, text.decoded(self.decoder)
            except (ValueError, RecursionError) as error:
                raise DataError(
                    f"`{self.path}`, row {number}, is not JSON: {_reason(error)}."
                ) from error
            if text.next_character() == ",":
                text.skip(",")
            elif text.next_character() != "]":
                raise DataError(
                    f"`{self.path}`, behind row {number}: the list of objects breaks off."
                )
        text.skip("]")
        if text.next_character():
            raise DataError(f"`{self.path}` goes on behind its list of {number} objects.")


def _reason(error: Exception) -> str:
    """Say what is wrong with a line of JSON; the line number that `json` gives is that of a part."""
    return (
        f"{error.msg} at character {error.colno}"
        if isinstance(error, json.JSONDecodeError)
        else str(error)
    )


class _Buffer:
    """The part of a JSON text that was read and not yet decoded."""

    def __init__(self, source: Iterator[str]):
        self.source = source
        self.text = ""
        self.is_whole = False

    def _read(self, size: int) -> None:
        """Read on until the buffer holds `size` characters, or the text ends."""
        parts = [self.text]
        length = len(self.text)
        while length < size and not self.is_whole:
            line = next(self.source, "")
            self.is_whole = not line
            parts.append(line)
            length += len(line)
        self.text = "".join(parts)

    def next_character(self) -> str:
        """Return the next character that is no white space, nothing at the end."""
        self.text = self.text.lstrip()
        while not self.text and not self.is_whole:
            self._read(CHUNK)
            self.text = self.text.lstrip()
        return self.text[:1]

    def skip(self, character: str) -> None:
        """Go past a character that is the next one."""
        assert self.next_character() == character
        self.text = self.text[1:]

    def decoded(self, decoder: json.JSONDecoder) -> Any:
        """Decode the next value, and go past it."""
        self.next_character()
        size = CHUNK
        while True:
            try:
                value, end = decoder.raw_decode(self.text)
            except ValueError:
                # It may only be cut off. Doubling keeps what is decoded in vain below twice its size.
                if self.is_whole or len(self.text) > MAX_LINE:
                    raise
                size = max(2 * size, 2 * len(self.text))
                self._read(size)
                continue
            self.text = self.text[end:]
            return value


def _without_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    cells = dict(pairs)
    if len(cells) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"an object has the key `{twice}` twice")
    return cells


class Parquet:
    """A Parquet file, read by pieces of its row groups."""

    def __init__(self, path: Path):
        self.path = path
        try:
            with pq.ParquetFile(path) as file:
                schema = file.schema_arrow
        except (ArrowException, OSError) as error:
            raise self._unreadable(error) from error
        self.columns: list[str] = list(schema.names)
        self.class_names = _declared_classes(schema.metadata)

    def rows(self, columns: Sequence[str] | None) -> Iterator[Cells]:
        """Yield each row, of `columns` alone."""
        names = list(self.columns if columns is None else columns)
        try:
            with pq.ParquetFile(self.path) as file:
                for batch in file.iter_batches(batch_size=PARQUET_ROWS, columns=names):
                    values = [batch.column(name).to_pylist() for name in names]
                    for cells in zip(*values, strict=True):
                        yield None, dict(zip(names, cells, strict=True))
        except (ArrowException, OSError, ValueError) as error:
            raise self._unreadable(error) from error

    def _unreadable(self, error: Exception) -> DataError:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        reason = lines[0].rstrip(".")
        return DataError(f"`{self.path}` cannot be read as Parquet: {reason}.")


def _declared_classes(metadata: dict[bytes, bytes] | None) -> dict[str, list[str]]:
    """Find the names of classes that `datasets` writes into a Parquet file, whose cells are their numbers."""
    try:
        features = json.loads((metadata or {})[b"huggingface"])["info"]["features"]
        declared = {
            column: feature["names"]
            for column, feature in features.items()
            if isinstance(feature, dict) and feature.get("_type") == "ClassLabel"
        }
    except (KeyError, ValueError, TypeError, AttributeError, RecursionError):
        return {}
    return {column: names for column, names in declared.items() if _are_names(names)}


def _are_names(names: Any) -> bool:
    return isinstance(names, list) and all(isinstance(name, str) for name in names)


Reader = Delimited | Json | Parquet
