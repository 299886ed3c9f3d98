"""Only one process at a time writes a run: it holds `lock.json`, which identifies it.

`filelock` locks the file, and the operating system unlocks it when the process ends, even after
`kill -9`; so the lock of a dead process is taken over silently. On a file system without locks, the
process that the file names decides: it holds the run if it is alive and started at the time that
the file gives. (The process id may have been reused since.)
"""

import contextlib
import datetime
import errno
import fcntl
import json
import os
import socket
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from perdure.errors import CheckpointError, OutputError, RunError
from perdure.storage.files import read_json
from perdure.storage.partial import is_alive

NAME = "lock.json"
WITHOUT_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)
"""The errors of a file system that has no locks."""
PATIENCE = 0.12
"""Seconds to wait, because `holder` in another process locks the file briefly."""

Holder = dict[str, Any]
"""The content of `lock.json`: `pid`, `host`, `since` and `began`; empty if unreadable."""


@contextlib.contextmanager
def held(folder: Path) -> Iterator[None]:
    """Hold a run while the block runs. Within one thread, such blocks can be nested.

    Raises
    ------
    RunError
        Another process (or thread) is writing the run; the message says which.
    OutputError
        The folder cannot be written.
    """
    path = folder.resolve() / NAME
    # A singleton per path, so that it counts how many blocks each thread has nested.
    lock = FileLock(path, is_singleton=True, poll_interval=0.02, fallback_to_soft=False)
    nested = _take(folder, lock)
    try:
        yield
    finally:
        # Remove the file before unlocking it: afterwards it may already be another process's.
        if not nested:
            with contextlib.suppress(OSError):
                path.unlink()
        # The run has been written whatever happens here, and the lock ends with its object.
        with contextlib.suppress(OSError):
            lock.release()


def holder(folder: Path) -> Holder | None:
    """Return who is writing the run now (`pid`, `host`, `since`), or None if nobody is."""
    try:
        # A pipe of this name would wait for a writer without O_NONBLOCK.
        descriptor = os.open(folder / NAME, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return None
    try:
        # A shared lock, so that processes that only look are not in each other's way.
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return None
    except BlockingIOError:
        return _read(folder)
    except OSError as error:
        who = _read(folder)
        without_locks = error.errno in WITHOUT_LOCKS
        return who if without_locks and _is_held_by_another(who) else None
    finally:
        os.close(descriptor)


def _take(folder: Path, lock: FileLock) -> bool:
    """Take the lock and write its file; return True if an outer block had it already."""
    nested = lock.is_locked
    try:
        if not _acquire(folder, lock):
            nested = _is_ours(_read(folder))
        if not nested:
            _write(folder)
    except Timeout:
        raise RunError(_sentence(folder, _read(folder))) from None
    except OSError as error:
        lock.release()
        path = folder / NAME
        raise OutputError(
            f"`{path}` cannot be written: {error.strerror}. The run is as it was."
        ) from error
    return nested


def _acquire(folder: Path, lock: FileLock) -> bool:
    """Lock the file; without locks, check that no other process holds it, and return False.

    Raises
    ------
    Timeout
        Another process (or thread) holds it.
    """
    _remove_hard_link(folder / NAME)
    try:
        lock.acquire(timeout=PATIENCE)
    except OSError as error:
        if error.errno not in WITHOUT_LOCKS:
            raise
        if _is_held_by_another(_read(folder)):
            raise Timeout(lock.lock_file) from error
        return False
    return True


def _remove_hard_link(path: Path) -> None:
    """Remove a file that has other names (hard links): we may not write what they name."""
    with contextlib.suppress(FileNotFoundError):
        status = path.lstat()
        if stat.S_ISREG(status.st_mode) and status.st_nlink > 1:
            path.unlink()


def _write(folder: Path) -> None:
    # Written in place, not renamed: the lock is on this very file, not on its name.
    flags = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK
    descriptor = os.open(folder / NAME, flags, 0o644)
    try:
        os.truncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps(_self()).encode(), 0)
    finally:
        os.close(descriptor)


def _is_held_by_another(who: Holder) -> bool:
    """Decide, without locks, by the process that the file names."""
    if not who:
        return False
    # Nobody here can tell whether a process of another machine is alive.
    if who["host"] != socket.gethostname():
        return True
    pid = who["pid"]
    began_then = who.get("began")
    began_now = _began(pid)
    unknown = began_now is None or began_then is None
    same_process = unknown or began_now == began_then
    return pid != os.getpid() and is_alive(pid) and same_process


def _is_ours(who: Holder) -> bool:
    """Return True if this process wrote the file; an earlier one may have had the same id."""
    ours = _self()
    return all(who.get(key) == ours[key] for key in ("pid", "host", "began"))


def _began(pid: int) -> int | None:
    """Return a process's start time, in clock ticks since boot, or None if unknown."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
        # The program's name stands in parentheses and may hold spaces and parentheses itself;
        # behind it, the start time is the 20th field (the 22nd of all, see proc(5)).
        fields = status.rpartition(")")[2].split()
        return int(fields[19])
    except (OSError, ValueError, IndexError):
        return None


def _self() -> Holder:
    now = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
    pid = os.getpid()
    return {"pid": pid, "host": socket.gethostname(), "since": now, "began": _began(pid)}


def _read(folder: Path) -> Holder:
    """Return who holds the run, according to the file; empty while the lock is being taken."""
    try:
        who = read_json(folder / NAME, limit=10_000)
    except CheckpointError:
        return {}
    texts = all(isinstance(who.get(key), str) for key in ("host", "since"))
    return who if texts and type(who.get("pid")) is int else {}


def _sentence(folder: Path, who: Holder) -> str:
    name = "another process"
    if who:
        name = f"process {who['pid']} on `{who['host']}`, since {who['since']}"
    return (
        f"`{folder}` is being written by {name}. "
        "Wait until it has ended, or stop it (Ctrl-C saves where it is). "
        f"If that process is gone and its machine out of reach, remove `{folder / NAME}`."
    )
