"""Readers for the files that hold tables: the rows of CSV, JSON and Parquet, one at a time.

A reader has its file's `columns` and the `class_names` that the file declares for some of them. It
yields each row as a pair: a line number (`None` if the format has no lines), and the cells by
column.
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

# Characters of a line or a cell: a file that is not a table may be one endless line. War and Peace
# has 3.2 million.
MAX_LINE = 10_000_000
DELIMITERS = (",", ";", "\t", "|")
CHUNK = 1 << 16  # the characters of JSON that are read at once
PARQUET_ROWS = 1024  # the rows of Parquet that are read at once, whatever its row groups are

Cells = tuple[int | None, dict[str, object]]


def check_file(path: Path) -> None:
    """Refuse anything but a regular file, before it is opened.

    Opening a pipe could block forever, and reading a device could fill the memory.

    Raises
    ------
    DataError
        The file does not exist, or is a folder, a pipe, a device or a socket.
    """
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError) as error:
        # `NotADirectoryError`: something above it in the path is a file.
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
    """Refuse files in other formats that are named like text files.

    Raises
    ------
    DataError
        The file begins as an archive, an Excel workbook or a Parquet file does.
    """
    # These begin with fixed bytes. Without this check the error would be one of encoding or of CSV.
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
        The text is not in this encoding, or a line is too long or holds a NUL character.
    """
    number = 0
    try:
        # `newline=""`: the ends of lines inside quoted cells of CSV stay as they are written.
        with path.open(encoding=_codec(encoding), newline="") as file:
            # One character more than is allowed, so that a line that is too long shows.
            while line := file.readline(MAX_LINE + 1):
                number += 1
                if "\0" in line:
                    raise DataError(
                        f"`{path}`, line {number}, holds a NUL character, so it is not a text in "
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
        b"".decode(encoding)  # refuses codecs such as `hex`, which make no text
    except (LookupError, ValueError) as error:
        raise DataError(f"There is no encoding `{encoding}`. Try `utf-8` or `latin-1`.") from error
    # Excel puts a byte order mark before its UTF-8, which would become part of the first column.
    return "utf-8-sig" if name == "utf-8" else encoding


class Delimited:
    """A table with a header line: CSV with any delimiter, or TSV.

    Without a `delimiter`, the header decides: it is split by each of the usual ones, and the one
    that makes the most columns is taken, a comma if there is only one column.
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
        # `max` takes the first of equals: a comma where the header is a single column.
        self.delimiter = max(headers, key=lambda candidate: len(headers[candidate]))
        self.columns = headers[self.delimiter]

    def _headers(self, delimiters: Sequence[str]) -> dict[str, list[str]]:
        """Return the columns that each delimiter makes of the header.

        Delimiters that would misplace quotes are left out.
        """
        headers = {}
        for delimiter in delimiters:
            try:
                headers[delimiter] = self._header(delimiter)
            except DataError as error:
                if not isinstance(error.__cause__, csv.Error):
                    raise
        if not headers:
            # None of them fits: the first is tried once more, for its error.
            first = delimiters[0]
            headers[first] = self._header(first)
        return headers

    def rows(self, columns: Sequence[str] | None) -> Iterator[Cells]:
        """Yield each row below the header; blank lines are not rows."""
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
        """Yield each record's first line number, and its cells."""
        csv.field_size_limit(MAX_LINE)  # the default refuses texts of more than 131,072 characters
        line = 1
        try:
            # Only a strict reader notices a quote that is never closed, which swallows the rest
            # of the table.
            reader = csv.reader(lines(self.path, self.encoding), delimiter=delimiter, strict=True)
            for cells in reader:
                if cells:
                    yield line, cells
                # A record may have several lines; the reader's number is that of its last one.
                line = reader.line_num + 1
        except csv.Error as error:
            raise DataError(
                f"`{self.path}`, the row that begins on line {line}, is not CSV: {error}. "
                "A cell that begins with a quote must end with one, and quotes within it must be "
                'doubled ("").'
            ) from error


class Number(float):
    """A JSON number with a fraction or an exponent; `written` is its text in the file: `1.10`,
    `1e5`."""

    written: str

    def __new__(cls, written: str):
        number = super().__new__(cls, written)
        number.written = written
        return number


class Json:
    """Objects in a JSON file: one on each line, or all in a list. Their keys are the columns."""

    def __init__(self, path: Path, encoding: str):
        check_text_file(path)
        self.path = path
        self.encoding = encoding
        self.class_names: dict[str, list[str]] = {}
        # `Number` keeps the digits: a class may be called `1.10`, which is not the class `1.1`.
        self.decoder = json.JSONDecoder(
            parse_float=Number,
            object_pairs_hook=_without_repeated_keys,
        )
        self.is_list = self._first_character() == "["
        first = next(self.rows(None), None)
        if first is None:
            raise DataError(
                f"`{path}` holds an empty list. It must hold objects, one for each row."
            )
        _, cells = first
        self.columns = list(cells)

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
        """Decode one object after the other: the list may be larger than the memory."""
        # A list may be written on a single line, so its rows are named by number alone.
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
                    f"`{self.path}`, after row {number}: the list of objects breaks off."
                )
        text.skip("]")
        if text.next_character():
            raise DataError(f"`{self.path}` goes on after its list of {number} objects.")


def _reason(error: Exception) -> str:
    """Describe what is wrong with a line of JSON.

    The line number that `json` gives is left out: it counts from where the decoder began.
    """
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg} at character {error.colno}"
    return str(error)


class _Buffer:
    """The text of a JSON file that has been read but not yet decoded."""

    def __init__(self, source: Iterator[str]):
        self.source = source
        self.text = ""
        self.is_whole = False

    def _read(self, size: int) -> None:
        """Read until the buffer holds `size` characters, or the text ends."""
        # Joined once: adding each line to a long text would copy it as often.
        pieces = [self.text]
        length = len(self.text)
        while length < size and not self.is_whole:
            line = next(self.source, "")
            self.is_whole = not line
            pieces.append(line)
            length += len(line)
        self.text = "".join(pieces)

    def next_character(self) -> str:
        """Return the next character that is not white space, or an empty text at the end."""
        self.text = self.text.lstrip()
        while not self.text and not self.is_whole:
            self._read(CHUNK)
            self.text = self.text.lstrip()
        return self.text[:1]

    def skip(self, character: str) -> None:
        """Consume the next character, which must be this one."""
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
                # The value may only be cut off: read on, and decode it once more. As the size
                # doubles, less than twice the value is decoded in vain.
                if self.is_whole or len(self.text) > MAX_LINE:
                    raise
                size = max(2 * size, 2 * len(self.text))
                self._read(size)
                continue
            self.text = self.text[end:]
            return value


def _without_repeated_keys(pairs: list[tuple[str, object]]) -> dict[str, object]:
    # `json` would keep the last value, and the user would not learn that the first was ignored.
    cells = dict(pairs)
    if len(cells) < len(pairs):
        names = [name for name, _ in pairs]
        repeated = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"an object has the key `{repeated}` twice")
    return cells


class Parquet:
    """A Parquet file, read in batches from its row groups."""

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
        """Yield each row, with only `columns`."""
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
        # Arrow's messages go on with its own calls, and some errors have no message.
        lines = str(error).strip().splitlines() or [type(error).__name__]
        reason = lines[0].rstrip(".")
        return DataError(f"`{self.path}` cannot be read as Parquet: {reason}.")


def _declared_classes(metadata: dict[bytes, bytes] | None) -> dict[str, list[str]]:
    """Return the names of classes that a Parquet file declares, by column.

    `datasets` writes them into the metadata of the files that it makes; the cells are numbers.
    """
    declared: dict[str, list[str]] = {}
    # Anybody can write such metadata. It is ignored unless it has the form of `datasets`.
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
