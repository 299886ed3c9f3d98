"""Readers for table files, which yield the rows of CSV, JSON and Parquet one at a time.

A reader has the `columns` of its file, and the `class_names` that the file declares for
some of them. It yields each row as a pair of a line number (None if the format has no
lines) and the cells by column.
"""

import codecs
import csv
import json
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow.parquet as pq
from pyarrow import ArrowException

from perdure.errors import DataError

# The maximum number of characters in a line or a cell, because a file that is not a table
# may be a single endless line. War and Peace has 3.2 million.
MAX_LINE = 10_000_000
DELIMITERS = (",", ";", "\t", "|")
CHUNK = 1 << 16  # the number of JSON characters to read at a time
PARQUET_ROWS = 1024  # the number of Parquet rows to read at a time, regardless of row groups

Cells = tuple[int | None, dict[str, object]]


def check_file(path: Path) -> None:
    """Check that a path is a regular file, before it is opened.

    Opening a pipe could block forever, and reading a device could fill the memory.

    Raises
    ------
    DataError
        The file does not exist, or is a folder, a pipe, a device or a socket.
    """
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError) as error:
        # `NotADirectoryError`: one of the parents in the path is a file.
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
    """Check that a file with the extension of a text format is not in a binary format.

    Raises
    ------
    DataError
        The file starts like a gzip or ZIP archive, an Excel workbook or a Parquet file.
    """
    # These formats start with fixed bytes. Without this check, the error message would be
    # about the encoding, or about CSV.
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
    """Yield the lines of a text file with their line endings, but without a byte order mark.

    Raises
    ------
    DataError
        The file is not in this encoding, or a line is too long or contains a NUL character.
    """
    number = 0
    try:
        # `newline=""` preserves the line endings inside quoted CSV cells.
        with path.open(encoding=_codec(encoding), newline="") as file:
            # Read one character more than allowed, to detect a line that is too long.
            while line := file.readline(MAX_LINE + 1):
                number += 1
                if "\0" in line:
                    raise DataError(
                        f"`{path}`, line {number}, contains a NUL character, so it is not text in "
                        f"{encoding}. Save the table as UTF-8, or give its `encoding`."
                    )
                if len(line) > MAX_LINE:
                    raise DataError(
                        f"`{path}`, line {number}, has more than {MAX_LINE:,} characters."
                    )
                yield line
    except UnicodeError as error:
        if isinstance(error, UnicodeDecodeError):
            # `object` is the block that was being decoded; the lines before it have been counted.
            before = error.object[: error.start]
            number += 1 + before.count(b"\n")
        raise DataError(
            f"`{path}`, line {number}, is not written in {encoding}. "
            "Save the table as UTF-8, or give its `encoding`."
        ) from error
    except OSError as error:
        raise DataError(f"`{path}` cannot be read: {error.strerror}.") from error


def _codec(encoding: str) -> str:
    try:
        name = codecs.lookup(encoding).name
        b"".decode(encoding)  # rejects codecs such as `hex`, which do not produce text
    except (LookupError, ValueError) as error:
        raise DataError(f"There is no encoding `{encoding}`. Try `utf-8` or `latin-1`.") from error
    # Excel writes a byte order mark before UTF-8, which would become part of the first column name.
    return "utf-8-sig" if name == "utf-8" else encoding


class Delimited:
    """A reader for tables with a header line: CSV with any delimiter, or TSV.

    If no `delimiter` is given, it is detected: the header is split by each common
    delimiter, and the one that produces the most columns is used. If the header has only
    one column, it is a comma.
    """

    def __init__(self, path: Path, encoding: str, delimiter: str | None):
        check_text_file(path)
        self.path = path
        self.encoding = encoding
        self.class_names: dict[str, list[str]] = {}
        if delimiter == "\\t":  # as given on the command line
            delimiter = "\t"
        if delimiter and (len(delimiter) > 1 or delimiter in '"\r\n'):
            raise DataError(
                f"`delimiter` is {delimiter!r}, but should be one character, such as `;`."
            )
        headers = self._headers([delimiter] if delimiter else DELIMITERS)
        # `max` returns the first of equal candidates: a comma if the header has a single column.
        self.delimiter = max(headers, key=lambda candidate: len(headers[candidate]))
        self.columns = headers[self.delimiter]

    def _headers(self, delimiters: Sequence[str]) -> dict[str, list[str]]:
        """Return the columns into which each delimiter splits the header.

        Delimiters that would put quotes in the wrong places are omitted.
        """
        headers = {}
        for delimiter in delimiters:
            try:
                headers[delimiter] = self._header(delimiter)
            except DataError as error:
                if not isinstance(error.__cause__, csv.Error):
                    raise
        if not headers:
            # No delimiter fits. The first one is tried once more, to raise its error.
            first = delimiters[0]
            headers[first] = self._header(first)
        return headers

    def rows(self, columns: Sequence[str] | None) -> Iterator[Cells]:
        """Yield each row after the header, skipping blank lines."""
        records = self._records(self.delimiter)
        next(records)  # the header
        for number, (line, cells) in enumerate(records, start=1):
            if len(cells) != len(self.columns):
                raise DataError(self._uneven(number, line, len(cells)))
            yield line, dict(zip(self.columns, cells, strict=True))

    def _uneven(self, number: int, line: int, count: int) -> str:
        expected = len(self.columns)
        cells = f"{count} cells" if count > 1 else f"{count} cell"
        return (
            f"`{self.path}`, row {number} (line {line}), has {cells}, "
            f"but the header has {expected}. Put texts that contain {self.delimiter!r} in quotes."
        )

    def _header(self, delimiter: str) -> list[str]:
        for _, cells in self._records(delimiter):
            return cells
        raise DataError(f"`{self.path}` is empty. Its first line must name the columns.")

    def _records(self, delimiter: str) -> Iterator[tuple[int, list[str]]]:
        """Yield each record as a pair of its first line number and its cells."""
        csv.field_size_limit(MAX_LINE)  # by default, at most 131,072 characters are accepted
        line = 1
        try:
            # Only a strict reader detects a quote that is never closed, which would
            # swallow the rest of the table.
            reader = csv.reader(lines(self.path, self.encoding), delimiter=delimiter, strict=True)
            for cells in reader:
                if cells:
                    yield line, cells
                # A record may span several lines; `line_num` is the number of its last line.
                line = reader.line_num + 1
        except csv.Error as error:
            raise DataError(
                f"`{self.path}`, the row that begins on line {line}, is not CSV: {error}. "
                "A cell that begins with a quote must end with one, and quotes within it must be "
                'doubled ("").'
            ) from error


class Number(float):
    """A JSON number with a fraction or an exponent.

    `written` is the number as written in the file, such as `1.10` or `1e5`.
    """

    written: str

    def __new__(cls, written: str):
        number = super().__new__(cls, written)
        number.written = written
        return number


class Json:
    """A reader for JSON files that contain one object per line or a single list of objects.

    The columns are the keys of the first object.
    """

    def __init__(self, path: Path, encoding: str):
        check_text_file(path)
        self.path = path
        self.encoding = encoding
        self.class_names: dict[str, list[str]] = {}
        # `Number` preserves the digits: a class may be called `1.10`, which is not the class `1.1`.
        self.decoder = json.JSONDecoder(
            parse_float=Number,
            object_pairs_hook=_without_repeated_keys,
        )
        self.is_list = self._first_character() == "["
        first = next(self.rows(None), None)
        if first is None:
            raise DataError(
                f"`{path}` contains an empty list. It must contain objects, one for each row."
            )
        _, cells = first
        self.columns = list(cells)

    def _first_character(self) -> str:
        for line in lines(self.path, self.encoding):
            if line.strip():
                return line.lstrip()[0]
        raise DataError(f"`{self.path}` is empty. It must contain objects, one on each line.")

    def rows(self, columns: Sequence[str] | None) -> Iterator[Cells]:
        """Yield each object as a row; `columns` is ignored."""
        values = self._from_list() if self.is_list else self._from_lines()
        for number, (line, value) in enumerate(values, start=1):
            if not isinstance(value, dict):
                raise DataError(
                    f"`{self.path}`, row {number}, is not an object with columns such as "
                    '{"text": "…", "label": "…"}.'
                )
            yield line, value

    def _from_lines(self) -> Iterator[tuple[int | None, object]]:
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

    def _from_list(self) -> Iterator[tuple[int | None, object]]:
        """Decode the objects one at a time, because the list may not fit into memory."""
        # A list may be written on a single line, so rows are identified by number alone.
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
                    f"`{self.path}`, after row {number}: the list of objects is incomplete."
                )
        text.skip("]")
        if text.next_character():
            raise DataError(f"`{self.path}` continues after its list of {number} objects.")


def _reason(error: Exception) -> str:
    """Describe a JSON error, without the line number that `json` reports.

    That number is relative to the position at which the decoder started.
    """
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg} at character {error.colno}"
    return str(error)


class _Buffer:
    """A buffer for the text of a JSON file that has been read but not yet decoded."""

    def __init__(self, source: Iterator[str]):
        self.source = source
        self.text = ""
        self.is_whole = False

    def _read(self, size: int) -> None:
        """Read until the buffer contains `size` characters, or the text ends."""
        # Joined once, because appending each line to a long text would copy it every time.
        pieces = [self.text]
        length = len(self.text)
        while length < size and not self.is_whole:
            line = next(self.source, "")
            self.is_whole = not line
            pieces.append(line)
            length += len(line)
        self.text = "".join(pieces)

    def next_character(self) -> str:
        """Return the next character that is not whitespace, or an empty string at the end."""
        self.text = self.text.lstrip()
        while not self.text and not self.is_whole:
            self._read(CHUNK)
            self.text = self.text.lstrip()
        return self.text[:1]

    def skip(self, character: str) -> None:
        """Consume the next character that is not whitespace; it must be `character`."""
        assert self.next_character() == character
        self.text = self.text[1:]

    def decoded(self, decoder: json.JSONDecoder) -> object:
        """Decode and consume the next value."""
        self.next_character()
        size = CHUNK
        while True:
            try:
                value, end = decoder.raw_decode(self.text)
            except ValueError:
                # The value may be incomplete: read more, and decode it again. Because the
                # size doubles, less than twice the value is decoded in vain.
                if self.is_whole or len(self.text) > MAX_LINE:
                    raise
                size = max(2 * size, 2 * len(self.text))
                self._read(size)
                continue
            self.text = self.text[end:]
            return value


def _without_repeated_keys(pairs: list[tuple[str, object]]) -> dict[str, object]:
    # `json` would use the last value and silently ignore the first.
    cells = dict(pairs)
    if len(cells) < len(pairs):
        names = [name for name, _ in pairs]
        repeated = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"an object has the key `{repeated}` twice")
    return cells


class Parquet:
    """A reader for Parquet files, which loads the rows in batches."""

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
        """Yield each row with only the cells of `columns` (by default, of all columns)."""
        names = list(self.columns if columns is None else columns)
        try:
            with pq.ParquetFile(self.path) as file:
                for batch in file.iter_batches(batch_size=PARQUET_ROWS, columns=names):
                    columns_of_batch = [batch.column(name).to_pylist() for name in names]
                    for values in zip(*columns_of_batch, strict=True):
                        cells = dict(zip(names, values, strict=True))
                        yield None, cells
        except (ArrowException, OSError, ValueError) as error:
            raise self._unreadable(error) from error

    def _unreadable(self, error: Exception) -> DataError:
        # Arrow's messages continue with a list of calls, and some errors have no message.
        lines = str(error).strip().splitlines() or [type(error).__name__]
        reason = lines[0].rstrip(".")
        return DataError(f"`{self.path}` cannot be read as Parquet: {reason}.")


def _declared_classes(metadata: dict[bytes, bytes] | None) -> dict[str, list[str]]:
    """Return the class names that a Parquet file declares, by column.

    `datasets` writes them to the metadata of its Parquet files; the cells contain class numbers.
    """
    declared: dict[str, list[str]] = {}
    # Anybody can write such metadata. It is ignored unless it has the form that `datasets` uses.
    try:
        features = json.loads((metadata or {})[b"huggingface"])["info"]["features"]
        for column, feature in features.items():
            is_declared = isinstance(feature, dict) and feature.get("_type") == "ClassLabel"
            if is_declared and _are_names(feature["names"]):
                declared[column] = feature["names"]
    except (KeyError, ValueError, TypeError, AttributeError, RecursionError):
        return {}
    return declared


def _are_names(names: object) -> bool:
    return isinstance(names, list) and all(isinstance(name, str) for name in names)


Reader = Delimited | Json | Parquet
