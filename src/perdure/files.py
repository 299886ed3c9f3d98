"""Files read with care and written whole.

Read: regular files of bounded size, as JSON, or as YAML without aliases (which a few lines can blow up to gigabytes).
Written: under a temporary name, synced, and renamed, so that at any moment a file is the old one or the new.
"""

import contextlib
import errno
import io
import json
import os
import re
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from perdure.errors import CheckpointError, OutputError

POINTER = b"version https://git-lfs.github.com/spec/"  # how a file begins that Git LFS has not fetched

ENDING = ".perdure-partial"
"""Of what is being written: a name that ends so, of a process that is gone, is rubbish."""
TASK_NAME = re.compile(r"[A-Za-z0-9][\w-]*")
"""What a task may be called: its name is that of a folder, and of a layer of the model."""
MAX_JSON = 100_000_000  # bytes
MAX_VALUES = 1_000_000  # in JSON: `[],[],…` takes 30 times its size in memory; a header with 100,000 tensors has fewer
MAX_YAML = 1_000_000
MAX_LINE = 10_000_000
MAX_DEPTH = 50  # of lists and mappings within each other in YAML, whose reader takes the square of it in time

_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the same in C, where PyYAML was built with it


def open_regular(path: Path) -> Any:
    """A file opened for reading in bytes; never a pipe or a device, on which reading would wait.

    Raises
    ------
    CheckpointError
        There is no such file, or it cannot be read.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise CheckpointError(f"`{path}` is not a file.")
        return path.open("rb", buffering=0)
    except OSError as error:
        raise CheckpointError(f"`{path}` cannot be read: {error.strerror}.") from error


def read_bytes(path: Path, limit: int) -> bytes:
    """A file's content, if it has at most `limit` bytes.

    Raises
    ------
    CheckpointError
        It has more, or cannot be read.
    """
    with open_regular(path) as file:
        if os.fstat(file.fileno()).st_size > limit:
            raise CheckpointError(f"`{path}` has more than {limit} bytes, which no such file needs.")
        content = file.readall()
    check_fetched(path, content)
    return content


def check_fetched(path: Path, content: bytes) -> None:
    """Refuse the pointer that Git LFS leaves where a file has not been fetched; `content` is its beginning, or all.

    Raises
    ------
    CheckpointError
        It is such a pointer.
    """
    if content.startswith(POINTER):
        raise CheckpointError(
            f"`{path}` is a pointer of Git LFS, not the file itself. Fetch it with `git lfs pull` where it was cloned, "
            "or download it again."
        )


def read_text(path: Path, limit: int = MAX_JSON) -> str:
    """A text in UTF-8.

    Raises
    ------
    CheckpointError
        It has too many bytes, is no such text, or cannot be read.
    """
    try:
        return read_bytes(path, limit).decode("utf-8")
    except UnicodeDecodeError as error:
        raise CheckpointError(f"`{path}` is not written in UTF-8 ({error.reason} at byte {error.start}).") from error


def read_lines(path: Path) -> Iterator[bytes]:
    """The lines of a file, each with its end; the file may be of any size.

    Raises
    ------
    CheckpointError
        A line has too many bytes, or the file cannot be read.
    """
    with open_regular(path) as plain_file, io.BufferedReader(plain_file) as file:
        while line := file.readline(MAX_LINE + 1):
            if len(line) > MAX_LINE:
                raise CheckpointError(f"`{path}` has a line of more than {MAX_LINE} bytes, which it never needs.")
            yield line


def read_json(path: Path, limit: int = MAX_JSON) -> dict[str, Any]:
    """A JSON object from a file.

    Raises
    ------
    CheckpointError
        There is no such file, or it holds something else.
    """
    return parse_json(read_bytes(path, limit), f"`{path}`")


def parse_json(text: bytes | str, what: str) -> dict[str, Any]:
    """A JSON object; `what` it is, for the error.

    Raises
    ------
    CheckpointError
        It is something else, or holds too many values.
    """
    try:
        text = text.decode("utf-8") if isinstance(text, bytes) else text
        if sum(map(text.count, ",[{")) > MAX_VALUES:  # counted in texts, too: none comes near
            raise ValueError(f"it holds more than {MAX_VALUES:,} values, which no such file needs")
        value = json.loads(text, object_pairs_hook=_without_twins)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{what[0].upper()}{what[1:]} is not JSON that can be read: {str(error)[:200]}."
        ) from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{what[0].upper()}{what[1:]} is not a JSON object, but {type(value).__name__}.")
    return value


def _without_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key is there twice")
    return found


def read_yaml(path: Path) -> dict[str, Any]:
    """A mapping of plain values from a YAML file (a date becomes its text).

    Raises
    ------
    CheckpointError
        It is none, or too large, or has aliases.
    """
    value = parse_yaml(read_text(path, MAX_YAML), f"`{path}`")
    if not isinstance(value, dict):
        raise CheckpointError(f"`{path}` is not a mapping of names and values, but {type(value).__name__}.")
    return value


def parse_yaml(text: str, what: str) -> Any:
    """Return the plain values that a YAML text states; `what` it is, for the error.

    Raises
    ------
    CheckpointError
        It is no YAML, has aliases, a key twice, or too many levels.
    """
    try:
        _check_yaml(what, text)
        return plain(yaml.load(text, Loader=_Reader))  # a safe loader
    except (yaml.YAMLError, ValueError, TypeError, RecursionError, OverflowError) as error:
        why = " ".join(str(error).split()).replace('"<unicode string>", ', "")[:300]
        raise CheckpointError(f"{what} is not YAML that can be read: {why}.") from error


def _check_yaml(what: str, text: str) -> None:
    """Refuse what would take long to read, before any of it is made."""
    depth = 0
    for event in yaml.parse(text, Loader=_Loader):
        if isinstance(event, yaml.AliasEvent):
            raise CheckpointError(f"{what} has aliases (`*name`), which are not read. Write their values out.")
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > MAX_DEPTH:
            raise CheckpointError(f"{what} has more than {MAX_DEPTH} lists or mappings within each other.")


class _Reader(_Loader):
    """A safe loader that refuses a key that is there twice, of which YAML's would take the last."""

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        names = set()
        for key, _ in node.value:
            name = (key.tag, str(key.value))
            if name in names:
                raise ValueError(f"`{key.value}` is there twice, in line {key.start_mark.line + 1} again")
            names.add(name)
        return super().construct_mapping(node, deep)


def plain(value: Any) -> Any:
    """Values as a file gives them back: lists for tuples, texts for what JSON does not know."""
    return json.loads(json.dumps(value, default=str))


def write(path: Path, content: str | bytes) -> None:
    """Write a file, whole or not at all.

    Raises
    ------
    OutputError
        The disk is full, or writing is not allowed. What was at this place before is as it was.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}{ENDING}")
    try:
        put(temporary, content)
        os.replace(temporary, path)
        sync(path.parent)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        why = error.strerror or str(error)
        raise OutputError(f"`{path}` cannot be written: {why}. What was there before is as it was.") from error


def put(path: Path, content: str | bytes) -> None:
    """Write a file under its own name and see it onto the disk: for a place that nobody reads yet."""
    try:
        with path.open("wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        error.filename = error.filename or str(path)  # a full disk does not say which file
        raise


def append(path: Path, line: str) -> None:
    """Add a line to a file of this folder (a link is not followed), all of it or nothing."""
    flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK
    number = os.open(path, flags, 0o666)
    try:
        size, content = os.fstat(number).st_size, line.encode()
        if size and os.pread(number, 1, size - 1) != b"\n":  # a process was killed inside its last line
            content = b"\n" + content
        try:
            if os.write(number, content) != len(content):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        except OSError:
            with contextlib.suppress(OSError):
                os.truncate(number, size)
            raise
    finally:
        os.close(number)


def sync(path: Path) -> None:
    """See to it that a file, or the names in a folder, are on the disk."""
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)


def to_json(value: Mapping[str, Any]) -> str:
    """A mapping as the JSON of our files: indented, and without NaN or infinities, which JSON does not know."""
    return json.dumps(value, indent=2, allow_nan=False)


def to_yaml(value: Mapping[str, Any]) -> str:
    """A mapping as YAML, in its own order, and without aliases."""
    return yaml.dump(dict(value), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110)


class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        return True
