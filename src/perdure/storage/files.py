"""Safe reads and atomic writes of single files.

Only regular files of bounded size are read. They are parsed as JSON, or as YAML without
aliases (which could expand a few lines to gigabytes). A file is written under a temporary
name, synced and then renamed, so that a path always refers to either the old or the new
file.
"""

import contextlib
import errno
import io
import json
import os
import re
import shutil
import stat
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import yaml

from perdure.errors import CheckpointError, OutputError, PerdureError
from perdure.storage import partial

POINTER = b"version https://git-lfs.github.com/spec/"
"""The first bytes of a file that Git LFS has not fetched."""
TASK_NAME = re.compile(r"[A-Za-z0-9][\w-]*")
"""The pattern of valid task names, which are also used as folder and layer names."""

MAX_JSON = 100_000_000  # bytes
# Parsed, `[],[],…` takes 30 times its size. A header with 100,000 tensors has fewer values.
MAX_VALUES = 1_000_000
MAX_YAML = 1_000_000  # bytes
MAX_LINE = 10_000_000  # bytes
MAX_LINES = 300_000_000  # bytes; a million training steps need a third of it
MAX_DEPTH = 50  # of nested YAML, which takes quadratic time to parse

# The same loader written in C, if PyYAML was built with it.
_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


# -- reading


def open_regular(path: Path) -> Any:
    """Open a regular file for reading bytes, but not a pipe or a device, which could block.

    The return type is `Any` because tests substitute a file whose reads fail.

    Raises
    ------
    CheckpointError
        The file does not exist, is not a regular file, or cannot be read.
    """
    try:
        # Without O_NONBLOCK, opening a pipe would wait for its other end.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise CheckpointError(f"`{path}` is not a file.")
        return os.fdopen(descriptor, "rb", buffering=0)
    except OSError as error:
        raise CheckpointError(f"`{path}` cannot be read: {error.strerror}.") from error


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[io.FileIO]:
    """Open a file for reading; system errors, even from later reads, become `CheckpointError`."""
    with open_regular(path) as file:
        try:
            yield file
        except OSError as error:
            raise CheckpointError(f"`{path}` cannot be read: {error.strerror}.") from error


def read_bytes(path: Path, limit: int) -> bytes:
    """Return the content of a file of at most `limit` bytes.

    Raises
    ------
    CheckpointError
        The file is larger, or cannot be read.
    """
    with _reading(path) as file:
        if os.fstat(file.fileno()).st_size > limit:
            raise CheckpointError(
                f"`{path}` has more than {limit} bytes, which no such file needs."
            )
        content = file.read()
    check_fetched(path, content)
    return content


def read_start(path: Path, size: int) -> bytes:
    """Return at most the first `size` bytes of a file.

    Raises
    ------
    CheckpointError
        The file cannot be read.
    """
    with _reading(path) as file:
        return file.read(size)


def check_fetched(path: Path, content: bytes) -> None:
    """Check that a file is not a Git LFS pointer, which takes the place of an unfetched file.

    Parameters
    ----------
    content
        The first bytes of the file, or all of them.

    Raises
    ------
    CheckpointError
        The file is a Git LFS pointer.
    """
    if content.startswith(POINTER):
        raise CheckpointError(
            f"`{path}` is a Git LFS pointer, not the file itself. "
            "Run `git lfs pull` in the clone it came from, or download it again."
        )


def read_text(path: Path, limit: int = MAX_JSON) -> str:
    """Return the text of a UTF-8 file.

    Raises
    ------
    CheckpointError
        The file has more than `limit` bytes, is not UTF-8, or cannot be read.
    """
    try:
        return read_bytes(path, limit).decode("utf-8")
    except UnicodeDecodeError as error:
        raise CheckpointError(
            f"`{path}` is not valid UTF-8 ({error.reason} at byte {error.start})."
        ) from error


def read_lines(path: Path) -> Iterator[bytes]:
    """Yield the lines of a file, each with its line ending.

    Raises
    ------
    CheckpointError
        The file or one of its lines is too long, or the file cannot be read.
    """
    with _reading(path) as plain_file, io.BufferedReader(plain_file) as file:
        if os.fstat(plain_file.fileno()).st_size > MAX_LINES:
            raise CheckpointError(
                f"`{path}` has more than {MAX_LINES} bytes, which no such file needs."
            )
        while line := file.readline(MAX_LINE + 1):
            if len(line) > MAX_LINE:
                raise CheckpointError(
                    f"`{path}` has a line of more than {MAX_LINE} bytes, which no such file needs."
                )
            yield line


def read_json(path: Path, limit: int = MAX_JSON) -> dict[str, Any]:
    """Return the JSON object in a file.

    Raises
    ------
    CheckpointError
        The file cannot be read, or does not contain a JSON object.
    """
    return parse_json(read_bytes(path, limit), f"`{path}`")


def parse_json(text: bytes | str, what: str) -> dict[str, Any]:
    """Parse a JSON object; `what` describes the text in error messages.

    Raises
    ------
    CheckpointError
        The text is not a JSON object, has a repeated key, or has too many values.
    """
    subject = f"{what[0].upper()}{what[1:]}"
    try:
        if isinstance(text, bytes):
            text = text.decode("utf-8")
        # An upper bound, because it also counts these characters inside strings. Checked
        # before parsing, which could itself exhaust memory.
        values = sum(map(text.count, ",[{"))
        if values > MAX_VALUES:
            raise ValueError(f"it has more than {MAX_VALUES:,} values, which no such file needs")
        value = json.loads(text, object_pairs_hook=_unique_keys)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{subject} is not JSON that can be read: {str(error)[:200]}."
        ) from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{subject} is not a JSON object, but {type(value).__name__}.")
    return value


def _unique_keys(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """Return a dict, rejecting repeated keys, for which `json` would use the last value."""
    mapping = dict(pairs)
    if len(mapping) != len(pairs):
        raise ValueError("a key appears twice")
    return mapping


def read_yaml(path: Path) -> dict[str, Any]:
    """Return the mapping in a YAML file as plain values; dates become strings.

    Raises
    ------
    CheckpointError
        The file is not a YAML mapping, is too large or too deeply nested, or has aliases.
    """
    value = parse_yaml(read_text(path, MAX_YAML), f"`{path}`")
    if not isinstance(value, dict):
        raise CheckpointError(
            f"`{path}` is not a mapping of keys to values, but {type(value).__name__}."
        )
    return value


def parse_yaml(text: str, what: str) -> Any:
    """Parse YAML into plain values; `what` describes the text in error messages.

    Raises
    ------
    CheckpointError
        The text is not YAML, has aliases or a repeated key, or is nested too deeply.
    """
    try:
        _check_yaml(what, text)
        return plain(yaml.load(text, Loader=_Reader))  # a safe loader
    except (yaml.YAMLError, ValueError, TypeError, RecursionError, OverflowError) as error:
        why = " ".join(str(error).split()).replace('"<unicode string>", ', "")[:300]
        raise CheckpointError(f"{what} is not YAML that can be read: {why}.") from error


def _check_yaml(what: str, text: str) -> None:
    """Reject aliases and deep nesting before values are built, which could take a long time."""
    depth = 0
    for event in yaml.parse(text, Loader=_Loader):
        if isinstance(event, yaml.AliasEvent):
            raise CheckpointError(
                f"{what} has aliases (`*name`), which are not supported. Write their values out."
            )
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        if depth > MAX_DEPTH:
            raise CheckpointError(
                f"{what} has more than {MAX_DEPTH} levels of nested lists or mappings."
            )


class _Reader(_Loader):
    """A safe YAML loader that rejects repeated keys instead of using the last value."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[object, object]:
        names = set()
        for key, _ in node.value:
            name = (key.tag, str(key.value))
            if name in names:
                line = key.start_mark.line + 1
                raise ValueError(f"`{key.value}` appears twice, again on line {line}")
            names.add(name)
        return super().construct_mapping(node, deep)


NUMBER = re.compile(r"[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+\Z")
"""Numbers such as `1e-3` and `1.0e3`, which YAML 1.1 would read as strings."""
_Reader.add_implicit_resolver("tag:yaml.org,2002:float", NUMBER, list("-+.0123456789"))


def plain(value: object) -> Any:
    """Convert a value to plain JSON types: tuples become lists, and dates become strings."""
    return json.loads(json.dumps(value, default=str))


# -- writing


@contextlib.contextmanager
def writing(
    path: Path,
    *,
    replace: bool = True,
    check: Callable[[], None] | None = None,
) -> Iterator[BinaryIO]:
    """Open a file for writing; it appears at `path`, complete, only if the block succeeds.

    Parameters
    ----------
    replace
        True to replace an existing file; if false, an existing file is an error.
    check
        A function called before the file is moved into place, and again afterwards; if it
        raises, the file is not kept. Use it to verify that no other process has changed
        the source files in the meantime.

    Raises
    ------
    OutputError
        `path` must not be replaced or cannot be written, or the disk is full.
    """
    partial.sweep(path.parent)
    with refusing(path):
        check_place(path, replace=replace)
        temporary, file = partial.new_file(path.parent)
    try:
        with _refusing_write(path, temporary):
            yield file
        with refusing(path):
            # The content must reach the disk before the name does: otherwise, a power
            # failure could leave an empty file under that name.
            file.flush()
            os.fsync(file.fileno())
            if check:
                check()
            _put_in_place(temporary, path, replace=replace)
        sync_names(path.parent)
    finally:
        with contextlib.suppress(OSError):  # closing retries what a full disk has refused
            file.close()
        with contextlib.suppress(OSError):  # after success this name is gone
            temporary.unlink()
    if check:
        _check_or_remove(path, check)


def write(path: Path, content: str | bytes, *, check: Callable[[], None] | None = None) -> None:
    """Write a file atomically; see `writing`."""
    with writing(path, check=check) as file:
        file.write(_encoded(content))


def _encoded(content: str | bytes) -> bytes:
    return content.encode() if isinstance(content, str) else content


def check_place(path: Path, *, replace: bool = True) -> None:
    """Check that a file may be written at a path: only a regular file is ever replaced.

    Raises
    ------
    OutputError
        The path is a link, a folder, a device, or a file that must not be replaced.
    """
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if stat.S_ISLNK(mode):
        raise OutputError(
            f"`{path}` is a link, which is not followed. Remove it, or write to its target."
        )
    if not stat.S_ISREG(mode):
        raise OutputError(
            f"`{path}` cannot be written: it is not a regular file. Choose another name."
        )
    if not replace:
        raise OutputError(f"`{path}` already exists. Remove it, or give another `--output`.")


def _put_in_place(temporary: Path, path: Path, *, replace: bool) -> None:
    if not replace:
        # A hard link would refuse an existing file atomically, but a kill would leave both names.
        check_place(path, replace=False)
    os.replace(temporary, path)


def _check_or_remove(path: Path, check: Callable[[], None]) -> None:
    """Run `check` on a file just moved into place; if it raises, remove the file."""
    try:
        check()
    except PerdureError:
        with refusing(path, verb="removed"):
            path.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def refusing(path: Path, *, verb: str = "written") -> Iterator[None]:
    """Turn a system error into an `OutputError` that always names the file.

    Raises
    ------
    OutputError
        The block raised an `OSError`.
    """
    try:
        yield
    except OSError as error:
        raise OutputError(f"`{path}` cannot be {verb}: {error.strerror or error}.") from error


@contextlib.contextmanager
def _refusing_write(path: Path, temporary: Path) -> Iterator[None]:
    """Handle errors like `refusing`, but for an open file; pass on errors about other files."""
    try:
        yield
    except OSError as error:
        if error.filename not in (None, str(temporary)):
            raise
        with refusing(path):
            raise


def put(path: Path, content: str | bytes) -> None:
    """Write and sync a new file under its final name, in a folder that nobody reads yet."""
    try:
        with path.open("xb") as file:
            file.write(_encoded(content))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        error.filename = error.filename or str(path)  # ENOSPC does not say which file
        raise


def append(path: Path, line: str) -> None:
    """Append a line to a file, completely or not at all; symbolic links are not followed."""
    _separate(path)
    flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK
    descriptor = os.open(path, flags, 0o666)
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "it is not a regular file", str(path))
        _append(descriptor, path, line.encode(), size=status.st_size)
    finally:
        os.close(descriptor)


def _append(descriptor: int, path: Path, content: bytes, *, size: int) -> None:
    """Append to an open file of `size` bytes; undo a write that fails halfway."""
    # If a process was killed in the middle of a line, start a new one.
    if size and os.pread(descriptor, 1, size - 1) != b"\n":
        content = b"\n" + content
    try:
        # A full disk may accept only the first bytes, without an error.
        if os.write(descriptor, content) != len(content):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
    except OSError:
        with contextlib.suppress(OSError):
            os.truncate(descriptor, size)
        raise


def _separate(path: Path) -> None:
    """Replace a hard-linked file with a copy, so that its other names do not change."""
    try:
        status = path.lstat()
    except FileNotFoundError:
        return
    if stat.S_ISREG(status.st_mode) and status.st_nlink > 1:
        with open_regular(path) as before, writing(path) as copy:
            shutil.copyfileobj(before, copy)


def sync(path: Path) -> None:
    """Flush a file, or a folder's entries, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_names(folder: Path) -> None:
    """Flush a folder's entries to disk, if its file system supports this.

    Errors are ignored, because the file already has its name at this point, and an error
    would suggest that it was not written.
    """
    with contextlib.suppress(OSError):
        sync(folder)


def to_json(value: Mapping[str, object]) -> str:
    """Return indented JSON; raise `ValueError` for NaN or infinity, which JSON does not have."""
    return json.dumps(value, indent=2, allow_nan=False)


def to_yaml(value: Mapping[str, object]) -> str:
    """Return a mapping as YAML, in its original order and without aliases."""
    return yaml.dump(dict(value), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110)


class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, data: object) -> bool:
        return True


# A string such as `1e5` must be quoted, or it is read back as a number.
_Dumper.add_implicit_resolver("tag:yaml.org,2002:float", NUMBER, list("-+.0123456789"))
