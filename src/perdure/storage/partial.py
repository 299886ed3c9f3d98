"""Files and folders that are being written, under names that nobody can foresee; and what dead processes left of them.

A new one is made exclusively, so that nothing which lies there already, such as a link, is ever opened. It stays
locked while its process lives: the system unlocks it even after `kill -9`, so whoever writes beside it next can tell
whether it is still wanted. Locks may not reach other machines, and process numbers mean nothing there. So each name
says where it was made, and what another place made is only removed when it is old.
"""

import contextlib
import fcntl
import hashlib
import os
import re
import secrets
import shutil
import socket
import stat
import time
from pathlib import Path
from typing import BinaryIO

ENDING = ".perdure-partial"
"""A hidden name with this ending counts for nothing."""
NAME = re.compile(r"\.[0-9a-f]{16}\.(?P<origin>[0-9a-f]{8})\.(?P<pid>\d+)" + re.escape(ENDING))
ABANDONED = 24 * 60 * 60
"""Seconds after which a file that another machine made, and that nobody holds, is no longer wanted."""
ATTEMPTS = 5
"""A process that sweeps may take a new file before its maker has locked it."""


def new_path(folder: Path) -> Path:
    """Return a name in a folder that nobody uses or can foresee.

    Its length does not depend on the name of what is written, which may be as long as the system allows.
    """
    return folder / f".{secrets.token_hex(8)}.{_origin()}.{os.getpid()}{ENDING}"


def new_file(folder: Path) -> tuple[Path, BinaryIO]:
    """Make an empty file that only this process knows, locked, with the permissions that the umask leaves."""
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    for _ in range(ATTEMPTS):
        path = new_path(folder)
        number = os.open(path, flags, 0o666)
        if _lock(number) and is_at(number, path):
            break
        os.close(number)
        path.unlink(missing_ok=True)
    else:  # a file system whose locks never succeed: it is not swept there either
        path = new_path(folder)
        number = os.open(path, flags, 0o666)
    return path, os.fdopen(number, "w+b")


def new_folder(parent: Path) -> tuple[Path, int]:
    """Make an empty folder that only this process knows; return it and the open number that keeps it locked."""
    for _ in range(ATTEMPTS):
        path = new_path(parent)
        os.mkdir(path, 0o777)
        number = _open_folder(path)
        if number is not None and _lock(number) and is_at(number, path):
            return path, number
        if number is not None:
            os.close(number)
        shutil.rmtree(path, ignore_errors=True)
    path = new_path(parent)
    os.mkdir(path, 0o777)
    return path, os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)


def _open_folder(path: Path) -> int | None:
    try:
        return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:  # another process swept it away before it was locked
        return None


def sweep(folder: Path) -> None:
    """Remove what processes left in a folder that no longer live. What cannot be removed stays: it counts for nothing.

    Links are neither followed nor removed.
    """
    with contextlib.suppress(OSError):
        for entry in list(os.scandir(folder)):
            if entry.name.endswith(ENDING):
                with contextlib.suppress(OSError):
                    _sweep(Path(entry.path))


def _sweep(path: Path) -> None:
    status = path.lstat()
    if not (stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode)):
        return
    number = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        if _is_abandoned(number, path, status.st_mtime):
            shutil.rmtree(path) if stat.S_ISDIR(status.st_mode) else path.unlink()
    finally:
        os.close(number)


def _is_abandoned(number: int, path: Path, modified: float) -> bool:
    """Return whether nobody writes a file any more."""
    try:
        fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
        locks = True
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        locks = False
    name = NAME.fullmatch(path.name)
    if name is None or name["origin"] != _origin():
        return time.time() - modified > ABANDONED
    return locks or not is_alive(int(name["pid"]))


def is_alive(pid: int) -> bool:
    """Return whether a process of this machine is running."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True
    return True


def is_at(number: int, path: Path) -> bool:
    """Return whether an open file is still the one at its path: somebody may have removed or replaced it."""
    try:
        return os.path.samestat(os.fstat(number), path.lstat())
    except FileNotFoundError:
        return False


def _lock(number: int) -> bool:
    """Try to lock an open file; where there are no locks, it is as good as locked."""
    try:
        fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        pass
    return True


def _origin() -> str:
    """Return a short name for where process numbers mean what they mean here: this machine, or this container."""
    try:
        processes = os.readlink("/proc/self/ns/pid")
    except OSError:  # not Linux
        processes = ""
    return hashlib.sha256(f"{socket.gethostname()} {processes}".encode()).hexdigest()[:8]
