"""File operations below a folder, counted; and one of them made to fail as a disk or a system
fails.
"""

import builtins
import contextlib
import errno
import io
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

KINDS = {
    "full": errno.ENOSPC,
    "denied": errno.EACCES,
    "read-only": errno.EROFS,
    "broken": errno.EIO,
    "torn": errno.ENOSPC,
}
KILLED, KILLED_INSIDE = "killed", "killed inside"
"""Kinds, too: the process is killed instead of the operation, or in the middle of what it writes.
"""
EVENTS = {
    "open",
    "os.chmod",
    "os.link",
    "os.listdir",
    "os.mkdir",
    "os.remove",
    "os.rename",
    "os.rmdir",
    "os.scandir",
    "os.truncate",
    "fcntl.flock",
}
READS = {"os.listdir", "os.scandir", "stat", "fstat", "read", "preadv", "readinto"}
_now: "Faults | None" = None


class Faults:
    """The operations below a folder since `watching` began; the one numbered `at` fails.

    Attributes
    ----------
    done
        What they were: `open lock.json`, `write .scores.csv.12.perdure-partial`, …;
        and what can befall them.
    """

    def __init__(self, folder: Path, at: int | None = None, kind: str = "broken"):
        self.folder, self.at, self.kind = os.path.realpath(folder), at, kind
        self.done: list[tuple[str, list[str]]] = []
        self._inside = False

    def operation(self, name: str, path: Any, *, reads: bool = False) -> bool:
        """Note one; fail if it is the one. True: it is to be torn."""
        if self._inside:
            return False
        self._inside = True
        try:
            place = _place(path)
            if place != self.folder and not place.startswith(f"{self.folder}/"):
                return False
            torn = name in ("write", "pwrite")
            possible = (
                ["denied", "broken"]
                if reads
                else [kind for kind in KINDS if kind != "torn" or torn]
            )
            self.done.append((f"{name} {place[len(self.folder) + 1 :]}", possible))
            if len(self.done) - 1 != self.at:
                return False
            if self.kind == KILLED:
                os.kill(os.getpid(), signal.SIGKILL)
            if self.kind in ("torn", KILLED_INSIDE):
                return True
            raise self.error(None if isinstance(path, int) else place)
        finally:
            self._inside = False

    def error(self, path: str | None = None) -> OSError:
        if self.kind == KILLED_INSIDE:
            os.kill(os.getpid(), signal.SIGKILL)
        number = KINDS[self.kind]
        return OSError(number, os.strerror(number), *([path] if path else []))


def _place(path: Any) -> str:
    """Where something is: also what is open under a number."""
    if isinstance(path, int):
        try:
            return os.readlink(f"/proc/self/fd/{path}")
        except OSError:
            return ""
    return os.path.abspath(os.fsdecode(path)) if isinstance(path, str | bytes | os.PathLike) else ""


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    if _now is None or event not in EVENTS:
        return
    path, name = arguments[0], event.removeprefix("os.")
    at = (
        arguments[-1] if event in ("os.remove", "os.rmdir", "os.mkdir") else -1
    )  # relative to an open folder
    if isinstance(at, int) and at >= 0 and not os.path.isabs(os.fsdecode(path)):
        path = f"{_place(at)}/{os.fsdecode(path)}"
    reads = event in READS
    if event == "open":
        mode, flags = arguments[1], arguments[2] if isinstance(arguments[2], int) else 0
        reads = not (
            flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT) or (mode and set(mode) & set("wax+"))
        )
    _now.operation(name, path, reads=reads)


sys.addaudithook(_hook)


class _File:
    """An open file whose reading and writing can fail."""

    def __init__(self, file: Any, path: Any):
        self._file, self._path = file, path

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._file, name)
        if name in ("read", "readall", "readinto", "readline"):
            return lambda *given: (
                _now and _now.operation("read", self._path, reads=True),
                found(*given),
            )[1]
        return found

    def write(self, content: Any) -> int:
        faults = _now
        if faults and faults.operation("write", self._path):
            self._file.write(content[: len(content) // 2])
            self._file.flush()
            raise faults.error()
        return self._file.write(content)

    def __enter__(self) -> "_File":
        return self

    def __exit__(self, *_: Any) -> None:
        self._file.close()

    def __iter__(self) -> Iterator[Any]:
        return iter(self._file)


def _patched() -> dict[tuple[Any, str], Any]:
    """What has no audit event."""
    found: dict[tuple[Any, str], Any] = {}
    inner_open, write, pwrite = io.open, os.write, os.pwrite

    def opened(file: Any, *given: Any, **more: Any) -> Any:
        made = inner_open(file, *given, **more)
        inside = _now is not None and _place(file).startswith(_now.folder)
        return _File(made, _place(file)) if inside else made

    def torn(name: str, inner: Any) -> Any:
        def write_half(number: int, content: bytes, *rest: Any) -> int:
            faults = _now
            if faults and faults.operation(name, number):
                inner(number, content[: len(content) // 2], *rest)
                raise faults.error()
            return inner(number, content, *rest)

        return write_half

    def watched(name: str, inner: Any, reads: bool) -> Any:
        def call(path: Any, *given: Any, **more: Any) -> Any:
            if _now and not more.get("dir_fd"):
                _now.operation(name, path, reads=reads)
            return inner(path, *given, **more)

        return call

    found[io, "open"] = found[builtins, "open"] = opened
    found[os, "write"], found[os, "pwrite"] = torn("write", write), torn("pwrite", pwrite)
    for name, reads in {
        "stat": True,
        "lstat": True,
        "fstat": True,
        "fsync": False,
        "preadv": True,
    }.items():
        found[os, name] = watched(name, getattr(os, name), reads)
    return found


@contextlib.contextmanager
def watching(faults: Faults) -> Iterator[Faults]:
    """Watch while the block runs."""
    global _now
    patched = _patched()
    before = {key: getattr(*key) for key in patched}
    for (module, name), function in patched.items():
        setattr(module, name, function)
    _now = faults
    try:
        yield faults
    finally:
        _now = None
        for (module, name), function in before.items():
            setattr(module, name, function)
