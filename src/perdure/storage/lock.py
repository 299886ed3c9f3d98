"""Only one process at a time writes a run: it holds `lock.json`, which says who it is.

`filelock` locks the file, and the operating system unlocks it when the process ends, even by `kill -9`; so what a dead
process left is taken over without a word. Where the file system knows no locks, the process that the file names
decides: it holds the run if it is alive, and began when the file says. (Another process may have got its number since.)
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
"""What a file system answers that knows no locks."""
PATIENCE = 0.12
"""Seconds: another process may just be looking who holds it."""


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
    path = folder.resolve() / NAME
    # one object for each path, so that it counts how many times over each thread holds it
    lock = FileLock(path, is_singleton=True, poll_interval=0.02, fallback_to_soft=False)
    nested = _take(folder, lock)
    try:
        yield
    finally:
        if not nested:
            with contextlib.suppress(OSError):
                path.unlink()
        with contextlib.suppress(
            OSError
        ):  # what was written is written; the lock ends with its object at the latest
            lock.release()


def holder(folder: Path) -> dict[str, Any] | None:
    """Who is writing the run now: `pid`, `host`, `since`; nothing if nobody is."""
    try:
        number = os.open(
            folder / NAME, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK
        )  # a pipe would wait for a writer
    except OSError:
        return None
    try:
        fcntl.flock(
            number, fcntl.LOCK_SH | fcntl.LOCK_NB
        )  # shared: who only looks is in nobody's way
        return None
    except BlockingIOError:
        return _read(folder)
    except OSError as error:
        who = _read(folder)
        return who if error.errno in WITHOUT_LOCKS and _is_held_by_another(who) else None
    finally:
        os.close(number)


def _take(folder: Path, lock: FileLock) -> bool:
    """Take the lock and write our name into its file; return whether this was done before, further out."""
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
    """Lock the file; where there are no locks, see that no other process holds it, and return false.

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
    """Remove a file that has other names: they are not ours to write."""
    with contextlib.suppress(FileNotFoundError):
        status = path.lstat()
        if stat.S_ISREG(status.st_mode) and status.st_nlink > 1:
            path.unlink()


def _write(folder: Path) -> None:
    number = os.open(folder / NAME, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o644)
    try:
        os.truncate(number, 0)
        os.pwrite(number, json.dumps(_self()).encode(), 0)
    finally:
        os.close(number)


def _is_held_by_another(who: dict[str, Any]) -> bool:
    """Judge, without locks, by the process that the file names."""
    if not who:
        return False
    if who["host"] != socket.gethostname():
        return True
    pid, then = who["pid"], who.get("began")
    now = _began(pid)
    same = now == then or None in (now, then)
    return pid != os.getpid() and is_alive(pid) and same


def _is_ours(who: dict[str, Any]) -> bool:
    """Return whether this process wrote the file; another may have had its number before."""
    ours = _self()
    return all(who.get(key) == ours[key] for key in ("pid", "host", "began"))


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
    name = (
        f"process {who['pid']} on `{who['host']}`, since {who['since']}"
        if who
        else "another process"
    )
    return (
        f"`{folder}` is being written by {name}. Wait until it has ended, or stop it (Ctrl-C saves where it is). Should"
        f" that process be gone and its machine out of reach, remove `{folder / NAME}`."
    )
