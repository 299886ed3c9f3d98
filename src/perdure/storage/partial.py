"""Temporary files and folders with unpredictable names, and the removal of abandoned ones.

A new file is created exclusively, so that an existing one, such as a link, is never
opened. It stays locked while its process is alive. The system unlocks it even after `kill
-9`, so the next process that writes to the same folder can tell whether the file is still
needed. Locks may not be visible to other machines, where process ids also have no
meaning. Each name therefore includes a hash of the machine that created the file, and
files from other machines are removed only when they are old.
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
"""The suffix of the names of temporary files, which are ignored when a folder is read."""
NAME = re.compile(r"\.[0-9a-f]{16}\.(?P<origin>[0-9a-f]{8})\.(?P<pid>\d+)" + re.escape(ENDING))
ABANDONED = 24 * 60 * 60
"""Age in seconds at which an unlocked file from another machine counts as abandoned."""
ATTEMPTS = 5
"""The number of attempts to create a file; another process may sweep it before it is locked."""


def new_path(folder: Path) -> Path:
    """Return an unused, unpredictable path in a folder.

    The length of the name does not depend on the final file name, which may be as long as
    the system allows.
    """
    return folder / f".{secrets.token_hex(8)}.{_origin()}.{os.getpid()}{ENDING}"


def new_file(folder: Path) -> tuple[Path, BinaryIO]:
    """Create an empty, locked file under an unpredictable name; its mode follows the umask."""
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    for _ in range(ATTEMPTS):
        path = new_path(folder)
        descriptor = os.open(path, flags, 0o666)
        if _lock(descriptor) and is_at(descriptor, path):
            break
        os.close(descriptor)
        path.unlink(missing_ok=True)
    else:  # a file system whose locks never succeed: nothing is swept there either
        path = new_path(folder)
        descriptor = os.open(path, flags, 0o666)
    return path, os.fdopen(descriptor, "w+b")


def new_folder(parent: Path) -> tuple[Path, int]:
    """Create an empty folder under an unpredictable name.

    Returns
    -------
    tuple
        The folder, and the open descriptor that keeps it locked.
    """
    for _ in range(ATTEMPTS):
        path = new_path(parent)
        os.mkdir(path, 0o777)
        descriptor = _open_folder(path)
        if descriptor is not None and _lock(descriptor) and is_at(descriptor, path):
            return path, descriptor
        if descriptor is not None:
            os.close(descriptor)
        remove(path)
    # As in `new_file`: locks never succeed here, so no sweep can take the folder either.
    path = new_path(parent)
    os.mkdir(path, 0o777)
    return path, os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)


def _open_folder(path: Path) -> int | None:
    try:
        return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:  # another process swept it before it was locked
        return None


def remove(folder: Path) -> None:
    """Remove a partial folder as far as possible; a later sweep removes the rest."""
    # Even with `ignore_errors`, `rmtree` raises if `fstat` fails.
    with contextlib.suppress(OSError):
        shutil.rmtree(folder, ignore_errors=True)


def sweep(folder: Path) -> None:
    """Remove the partial files of dead processes from a folder, as far as possible.

    Links are neither followed nor removed.
    """
    with contextlib.suppress(OSError):
        for entry in list(os.scandir(folder)):
            if entry.name.endswith(ENDING):
                with contextlib.suppress(OSError):
                    _sweep(Path(entry.path))


def _sweep(path: Path) -> None:
    status = path.lstat()
    is_folder = stat.S_ISDIR(status.st_mode)
    if not (is_folder or stat.S_ISREG(status.st_mode)):
        return
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        # Removed while we have the lock: its writer, if still alive, sees that it is gone.
        if _is_abandoned(descriptor, path, status.st_mtime):
            if is_folder:
                shutil.rmtree(path)
            else:
                path.unlink()
    finally:
        os.close(descriptor)


def _is_abandoned(descriptor: int, path: Path, modified: float) -> bool:
    """Return True if no process is still writing a file."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        locked = True
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        locked = False
    name = NAME.fullmatch(path.name)
    if name is None or name["origin"] != _origin():
        # From another machine, whose locks we may not see: only its age counts.
        return time.time() - modified > ABANDONED
    return locked or not is_alive(int(name["pid"]))


def is_alive(pid: int) -> bool:
    """Return True if the process with this id is running on this machine."""
    try:
        os.kill(pid, 0)  # signal 0 only checks
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        # Another user's process, or one we cannot check: waiting is safer than overwriting.
        return True
    return True


def is_at(descriptor: int, path: Path) -> bool:
    """Return True if an open file is still at its path, neither removed nor replaced."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.lstat())
    except FileNotFoundError:
        return False


def _lock(descriptor: int) -> bool:
    """Try to lock an open file; on a file system without locks, report success."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        pass
    return True


def _origin() -> str:
    """Return a short hash of the machine or container in which our process ids are valid."""
    try:
        processes = os.readlink("/proc/self/ns/pid")
    except OSError:  # not Linux
        processes = ""
    return hashlib.sha256(f"{socket.gethostname()} {processes}".encode()).hexdigest()[:8]
