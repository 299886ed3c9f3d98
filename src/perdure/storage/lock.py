"""A lock on a run folder, so that only one process at a time writes to it.

The process locks `lock.json` and writes its id and host to this file. `filelock` does the
locking, and the operating system unlocks the file when the process ends, even after `kill
-9`, so the lock of a dead process is taken over silently. On a file system without locks,
the run counts as locked if the process listed in the file is alive and started at the
time the file says. (Its id may have been reused since.)
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
"""Error numbers that a file system without locks returns."""
PATIENCE = 0.12
"""Seconds to wait for the lock, which another process may hold briefly in `holder`."""

Holder = dict[str, Any]
"""The content of `lock.json`: `pid`, `host`, `since` and `began`; empty if unreadable."""


@contextlib.contextmanager
def held(folder: Path) -> Iterator[None]:
    """Lock a run for the duration of the block. Blocks in one thread can be nested.

    Raises
    ------
    RunError
        Another process (or thread) is writing to the run; the message says which one.
    OutputError
        The folder is not writable.
    """
    path = folder.resolve() / NAME
    # A singleton per path, so that it counts each thread's nested blocks.
    lock = FileLock(path, is_singleton=True, poll_interval=0.02, fallback_to_soft=False)
    nested = _take(folder, lock)
    try:
        yield
    finally:
        # Remove the file before unlocking it: afterwards, it may belong to another process.
        if not nested:
            with contextlib.suppress(OSError):
                path.unlink()
        # The run is already on disk, and the lock is released at the latest with its object.
        with contextlib.suppress(OSError):
            lock.release()


def holder(folder: Path) -> Holder | None:
    """Return the process that is currently writing the run (`pid`, `host`, `since`), or None."""
    try:
        # Without O_NONBLOCK, opening a pipe of this name would wait for a writer.
        descriptor = os.open(folder / NAME, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return None
    try:
        # A shared lock, so that processes that only check do not block each other.
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
    """Acquire the lock and write our entry; return True if an outer block already has the lock."""
    nested = lock.is_locked
    try:
        if not _acquire(folder, lock):
            nested = _is_ours(_read(folder))
        if not nested:
            _write(folder)
    except Timeout:
        raise RunError(_message(folder, _read(folder))) from None
    except OSError as error:
        lock.release()
        path = folder / NAME
        raise OutputError(
            f"`{path}` cannot be written: {error.strerror}. The run is unchanged."
        ) from error
    return nested


def _acquire(folder: Path, lock: FileLock) -> bool:
    """Lock the run's file, and return True; return False if the file system has no locks.

    In that case, the file's entry shows whether another process is writing the run.

    Raises
    ------
    Timeout
        Another process (or thread) has the lock.
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
    """Remove a hard-linked file: writing to it would change its other names as well."""
    with contextlib.suppress(FileNotFoundError):
        status = path.lstat()
        if stat.S_ISREG(status.st_mode) and status.st_nlink > 1:
            path.unlink()


def _write(folder: Path) -> None:
    # Written in place, not renamed: the lock is on the file itself, not on its name.
    flags = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK
    descriptor = os.open(folder / NAME, flags, 0o644)
    try:
        os.truncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps(_self()).encode(), 0)
    finally:
        os.close(descriptor)


def _is_held_by_another(who: Holder) -> bool:
    """Return True if a lock file names another process that may still be running."""
    if not who:
        return False
    # We cannot tell whether a process on another machine is alive.
    if who["host"] != socket.gethostname():
        return True
    pid = who["pid"]
    began_then = who.get("began")
    began_now = _began(pid)
    unknown = began_now is None or began_then is None
    same_process = unknown or began_now == began_then
    return pid != os.getpid() and is_alive(pid) and same_process


def _is_ours(who: Holder) -> bool:
    """Return True if this process wrote the entry, and not an earlier process with the same id."""
    this_process = _self()
    return all(who.get(key) == this_process[key] for key in ("pid", "host", "began"))


def _began(pid: int) -> int | None:
    """Return the start time of a process in clock ticks since boot, or None if unknown."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
        # The program's name is in parentheses, and may itself contain spaces and
        # parentheses. The start time is the 20th field after it (22nd overall, see
        # proc(5)).
        fields = status.rpartition(")")[2].split()
        return int(fields[19])
    except (OSError, ValueError, IndexError):
        return None


def _self() -> Holder:
    now = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
    pid = os.getpid()
    return {"pid": pid, "host": socket.gethostname(), "since": now, "began": _began(pid)}


def _read(folder: Path) -> Holder:
    """Return the lock file's entry; empty if it cannot be read or is still being written."""
    try:
        who = read_json(folder / NAME, limit=10_000)
    except CheckpointError:
        return {}
    texts = all(isinstance(who.get(key), str) for key in ("host", "since"))
    return who if texts and type(who.get("pid")) is int else {}


def _message(folder: Path, who: Holder) -> str:
    name = "another process"
    if who:
        name = f"process {who['pid']} on `{who['host']}`, since {who['since']}"
    return (
        f"`{folder}` is being written by {name}. "
        "Wait until it ends, or stop it (Ctrl-C saves its progress). "
        f"If that process is gone and its machine is unreachable, remove `{folder / NAME}`."
    )
