"""Only one process at a time writes a run: it holds `lock.json`, which says who it is.

The operating system locks the file, and unlocks it when the process ends, even by `kill -9`; so what a dead process
left is taken over without a word. Where the file system knows no locks, the process that the file names decides: it
holds the run if it is alive, and began when the file says. (Another process may have got its number since.)
"""

import contextlib
import datetime
import errno
import fcntl
import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from perdure.errors import CheckpointError, OutputError, RunError
from perdure.storage.files import read_json
from perdure.storage.partial import is_alive, is_at

NAME = "lock.json"
_mine: dict[Path, tuple[int, int]] = {}
"""The folders that this process holds: by which thread, and how many times over."""


@contextlib.contextmanager
def held(folder: Path) -> Iterator[None]:
    """Hold a run while the block runs. Within one thread it can be held several times over.

    Raises
    ------
    RunError
        Another process (or thread) is writing the run; the message says which.
    OutputError
        The folder cannot be written.
    """
    place, me = folder.resolve(), threading.get_ident()
    thread, depth = _mine.get(place, (me, 0))
    if thread != me:
        raise RunError(_sentence(folder, _read(folder)))
    number = None if depth else _taken(folder)
    _mine[place] = (me, depth + 1)
    try:
        yield
    finally:
        if depth:
            _mine[place] = (me, depth)
        else:
            del _mine[place]
            with contextlib.suppress(OSError):
                (folder / NAME).unlink()
            if number is not None:
                os.close(number)


def holder(folder: Path) -> dict[str, Any] | None:
    """Who is writing the run now: `pid`, `host`, `since`; nothing if nobody is."""
    try:
        number = os.open(folder / NAME, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)  # a pipe would wait for a writer
    except OSError:
        return None
    try:
        return None if _locked(number, folder, fcntl.LOCK_SH) else _read(folder)
    except OSError:  # nobody can say
        return None
    finally:
        os.close(number)


def _taken(folder: Path) -> int:
    """The lock file, open and locked."""
    path = folder / NAME
    for wait in (0.02, 0.1, 0.0):  # another process may just be looking who holds it
        try:
            if (number := _opened(folder, path)) is not None:
                return number
        except OSError as error:
            raise OutputError(f"`{path}` cannot be written: {error.strerror}. The run is as it was.") from error
        time.sleep(wait)
    raise RunError(_sentence(folder, _read(folder)))


def _opened(folder: Path, path: Path) -> int | None:
    """The lock file with our name in it, if it can be had now."""
    number = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o644)
    try:
        if _locked(number, folder, fcntl.LOCK_EX) and is_at(number, path):
            if os.fstat(number).st_nlink == 1:
                os.truncate(number, 0)
                os.pwrite(number, json.dumps(_self()).encode(), 0)
                return number
            path.unlink()  # its other names (hard links) are not ours to write: the next attempt makes a new file
    except BaseException:
        os.close(number)
        raise
    os.close(number)
    return None


def _locked(number: int, folder: Path, kind: int) -> bool:
    """Try to lock an open file."""
    try:
        fcntl.flock(number, kind | fcntl.LOCK_NB)
        return True
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL):
            raise
    other = _read(folder)  # a file system without locks
    return not other or (other["host"] == socket.gethostname() and not _is_same(other))


def _is_same(other: dict[str, Any]) -> bool:
    """Whether the process that held the run is still there, and is not this one, which would know."""
    pid, then = other["pid"], other.get("began")
    now = _began(pid)
    return pid != os.getpid() and is_alive(pid) and (now == then or None in (now, then))


def _began(pid: int) -> int | None:
    """When a process began, in ticks since the machine did; nothing where that cannot be known."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
    except (OSError, ValueError, IndexError):
        return None


def _self() -> dict[str, Any]:
    now, pid = datetime.datetime.now().astimezone().isoformat(timespec="seconds"), os.getpid()
    return {"pid": pid, "host": socket.gethostname(), "since": now, "began": _began(pid)}


def _read(folder: Path) -> dict[str, Any]:
    """Who the file says holds the run. It may be empty: whoever took it has not written it yet."""
    try:
        found = read_json(folder / NAME, limit=10_000)
    except CheckpointError:
        return {}
    texts = all(isinstance(found.get(key), str) for key in ("host", "since"))
    return found if texts and type(found.get("pid")) is int else {}


def _sentence(folder: Path, who: dict[str, Any]) -> str:
    name = f"process {who['pid']} on `{who['host']}`, since {who['since']}" if who else "another process"
    return (
        f"`{folder}` is being written by {name}. Wait until it has ended, or stop it (Ctrl-C saves where it is). Should"
        f" that process be gone and its machine out of reach, remove `{folder / NAME}`."
    )
