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
import shutil
import stat
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import yaml

from perdure.errors import CheckpointError, OutputError, PerdureError
from perdure.storage import partial

POINTER = (
    b"version https://git-lfs.github.com/spec/"  # how a file begins that Git LFS has not fetched
)
TASK_NAME = re.compile(r"[A-Za-z0-9][\w-]*")
"""What a task may be called: its name is that of a folder, and of a layer of the model."""
MAX_JSON = 100_000_000  # bytes
MAX_VALUES = 1_000_000  # in JSON: `[],[],…` takes 30 times its size in memory; a header with 100,000 tensors has fewer
MAX_YAML = 1_000_000
MAX_LINE = 10_000_000
MAX_LINES = 300_000_000  # bytes of a file of lines: a million steps of training are a third of that
MAX_DEPTH = 50  # of lists and mappings within each other in YAML, whose reader takes the square of it in time

_Loader: Any = getattr(
    yaml, "CSafeLoader", yaml.SafeLoader
)  # the same in C, where PyYAML was built with it


def open_regular(path: Path) -> Any:
    """A file opened for reading in bytes; never a pipe or a device, on which reading would wait.

    Raises
    ------
    CheckpointError
        There is no such file, or it cannot be read.
    """
    try:
        # opening a pipe would wait for its other end
        number = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        if not stat.S_ISREG(os.fstat(number).st_mode):
            os.close(number)
            raise CheckpointError(f"`{path}` is not a file.")
        return os.fdopen(number, "rb", buffering=0)
    except OSError as error:
        raise CheckpointError(f"`{path}` cannot be read: {error.strerror}.") from error


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[io.FileIO]:
    """Open a file to read it; an error of the system while it is read names it, as one while it is opened does."""
    with open_regular(path) as file:
        try:
            yield file
        except OSError as error:
            raise CheckpointError(f"`{path}` cannot be read: {error.strerror}.") from error


def read_bytes(path: Path, limit: int) -> bytes:
    """A file's content, if it has at most `limit` bytes.

    Raises
    ------
    CheckpointError
        It has more, or cannot be read.
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
        It cannot be read.
    """
    with _reading(path) as file:
        return file.read(size)


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
        raise CheckpointError(
            f"`{path}` is not written in UTF-8 ({error.reason} at byte {error.start})."
        ) from error


def read_lines(path: Path) -> Iterator[bytes]:
    """The lines of a file, each with its end.

    Raises
    ------
    CheckpointError
        A line or the file has too many bytes, or the file cannot be read.
    """
    with _reading(path) as plain_file, io.BufferedReader(plain_file) as file:
        if os.fstat(plain_file.fileno()).st_size > MAX_LINES:
            raise CheckpointError(
                f"`{path}` has more than {MAX_LINES} bytes, which no such file needs."
            )
        while line := file.readline(MAX_LINE + 1):
            if len(line) > MAX_LINE:
                raise CheckpointError(
                    f"`{path}` has a line of more than {MAX_LINE} bytes, which it never needs."
                )
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
        raise CheckpointError(
            f"{what[0].upper()}{what[1:]} is not a JSON object, but {type(value).__name__}."
        )
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
        raise CheckpointError(
            f"`{path}` is not a mapping of names and values, but {type(value).__name__}."
        )
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
            raise CheckpointError(
                f"{what} has aliases (`*name`), which are not read. Write their values out."
            )
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(
            event, yaml.CollectionEndEvent
        )
        if depth > MAX_DEPTH:
            raise CheckpointError(
                f"{what} has more than {MAX_DEPTH} lists or mappings within each other."
            )


class _Reader(_Loader):
    """A safe loader that refuses a key that is there twice, of which YAML's would take the last."""

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        names = set()
        for key, _ in node.value:
            name = (key.tag, str(key.value))
            if name in names:
                raise ValueError(
                    f"`{key.value}` is there twice, in line {key.start_mark.line + 1} again"
                )
            names.add(name)
        return super().construct_mapping(node, deep)


NUMBER = re.compile(r"[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+\Z")
"""What everybody but YAML 1.1 takes for a number: for that, `1e-3` and `1.0e3` are texts."""
_Reader.add_implicit_resolver("tag:yaml.org,2002:float", NUMBER, list("-+.0123456789"))


def plain(value: Any) -> Any:
    """Values as a file gives them back: lists for tuples, texts for what JSON does not know."""
    return json.loads(json.dumps(value, default=str))


@contextlib.contextmanager
def writing(
    path: Path,
    *,
    replace: bool = True,
    check: Callable[[], None] | None = None,
) -> Iterator[BinaryIO]:
    """Open a file to write into, which takes its place at `path` when the block ends; if it fails, nothing is left.

    Parameters
    ----------
    replace
        Whether a file that is there already is replaced; otherwise it is an error.
    check
        Called before the file takes its place, and again afterwards: if it raises, the file is not kept. For what
        has to hold of the sources that the file was made from, which others may change meanwhile.

    Raises
    ------
    OutputError
        There is something at `path` that may not be replaced, the disk is full, or writing is not allowed.
    """
    partial.sweep(path.parent)
    with refusing(path):
        check_place(path, replace=replace)
        temporary, file = partial.new_file(path.parent)
    try:
        with _refusing_write(path, temporary):
            yield file
        with refusing(path):
            file.flush()
            os.fsync(file.fileno())
            if check:
                check()
            _put_in_place(temporary, path, replace=replace)
        sync_names(path.parent)
    finally:
        with contextlib.suppress(OSError):  # closing writes again what a full disk has refused
            file.close()
        with contextlib.suppress(OSError):
            temporary.unlink()
    if check:
        _check_or_remove(path, check)


def write(path: Path, content: str | bytes, *, check: Callable[[], None] | None = None) -> None:
    """Write a file, whole or not at all; see `writing`."""
    with writing(path, check=check) as file:
        file.write(content.encode() if isinstance(content, str) else content)


def check_place(path: Path, *, replace: bool = True) -> None:
    """Check that a file may be written at a path: nothing but a regular file is ever replaced.

    Raises
    ------
    OutputError
        There is a file that is to be kept, a link, a folder, or a device.
    """
    try:
        kind = path.lstat().st_mode
    except FileNotFoundError:
        return
    if stat.S_ISLNK(kind):
        raise OutputError(
            f"`{path}` is a link, which is not followed. Remove it, or write to where it points."
        )
    if not stat.S_ISREG(kind):
        raise OutputError(f"`{path}` cannot be written: it is no regular file. Give another name.")
    if not replace:
        raise OutputError(f"`{path}` already exists. Remove it, or give another `--output`.")


def _put_in_place(temporary: Path, path: Path, *, replace: bool) -> None:
    if (
        not replace
    ):  # a hard link would also refuse in this very instant, but a kill would leave both names
        check_place(path, replace=False)
    os.replace(temporary, path)


def _check_or_remove(path: Path, check: Callable[[], None]) -> None:
    """Take a file back if it no longer holds: what it was made from changed in the instant of its writing."""
    try:
        check()
    except PerdureError:
        with refusing(path, verb="removed"):
            path.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def refusing(path: Path, *, verb: str = "written") -> Iterator[None]:
    """Turn an error of the operating system about a file into a sentence that names it, also where the system does not.

    Raises
    ------
    OutputError
        The system refused something.
    """
    try:
        yield
    except OSError as error:
        raise OutputError(f"`{path}` cannot be {verb}: {error.strerror or error}.") from error


@contextlib.contextmanager
def _refusing_write(path: Path, temporary: Path) -> Iterator[None]:
    """The same for what is done while a file is open: an error that names a file is about another one, and passes."""
    try:
        yield
    except OSError as error:
        if error.filename not in (None, str(temporary)):
            raise
        with refusing(path):
            raise


def put(path: Path, content: str | bytes) -> None:
    """Write a new file under its own name and see it onto the disk: for a folder that nobody reads yet."""
    try:
        with path.open("xb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        error.filename = error.filename or str(path)  # a full disk does not say which file
        raise


def append(path: Path, line: str) -> None:
    """Add a line to a file of this folder (a link is not followed), all of it or nothing."""
    _separate(path)
    flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK
    number = os.open(path, flags, 0o666)
    try:
        if not stat.S_ISREG(os.fstat(number).st_mode):
            raise OSError(errno.EINVAL, "it is no regular file", str(path))
        size, content = os.fstat(number).st_size, line.encode()
        if (
            size and os.pread(number, 1, size - 1) != b"\n"
        ):  # a process was killed inside its last line
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


def _separate(path: Path) -> None:
    """Give a file that has several names (hard links) a copy under this one: the others are not ours to write."""
    try:
        status = path.lstat()
    except FileNotFoundError:
        return
    if stat.S_ISREG(status.st_mode) and status.st_nlink > 1:
        with open_regular(path) as before, writing(path) as copy:
            shutil.copyfileobj(before, copy)


def sync(path: Path) -> None:
    """See to it that a file, or the names in a folder, are on the disk."""
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)


def sync_names(folder: Path) -> None:
    """See to it that new names in a folder are on the disk, as far as its file system can.

    Not all can, and what was written has its name already: an error would say that it has not.
    """
    with contextlib.suppress(OSError):
        sync(folder)


def to_json(value: Mapping[str, Any]) -> str:
    """A mapping as the JSON of our files: indented, and without NaN or infinities, which JSON does not know."""
    return json.dumps(value, indent=2, allow_nan=False)


def to_yaml(value: Mapping[str, Any]) -> str:
    """A mapping as YAML, in its own order, and without aliases."""
    return yaml.dump(dict(value), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110)


class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        return True


# A text such as `1e5` must be in quotes, or it is read as a number.
_Dumper.add_implicit_resolver("tag:yaml.org,2002:float", NUMBER, list("-+.0123456789"))
