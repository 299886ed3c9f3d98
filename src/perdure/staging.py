"""A folder that is there whole or not at all: written beside its place under a hidden name, synced, and renamed.

The hidden folder is locked while its process lives; the operating system unlocks it even after `kill -9`. So the next
run knows which of them nobody writes any more, and removes those.
"""

import contextlib
import errno
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from perdure.errors import OutputError
from perdure.files import ENDING, sync
from perdure.lock import is_alive


@contextlib.contextmanager
def new_folder(output: Path, *, size: int) -> Iterator[Path]:
    """A folder to write into, which becomes `output` when the block ends; if it fails, nothing is left.

    Parameters
    ----------
    size
        How many bytes will be written: if there is no room for them, it fails at once.

    Raises
    ------
    OutputError
        There is something at `output`, the disk is full, or writing is not allowed.
    """
    made: list[Path] = []
    try:
        with _explained(output, size):
            check_free(output)
            made = _make_parents(output.parent)
            sweep(output.parent)
            _check_room(output, size)
            folder, lock = _locked(output)
        try:
            with _explained(output, size):
                yield folder
                _sync_all(folder)
                os.rename(folder, output)  # fails if another process has put something there meanwhile
            with contextlib.suppress(OSError):  # it is there now; a folder that cannot be opened cannot be synced
                sync(output.parent)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            os.close(lock)
    except BaseException:
        for parent in reversed(made):
            with contextlib.suppress(OSError):
                parent.rmdir()
        raise


def check_free(output: Path) -> None:
    """Raise `OutputError` if there is something at this place; an empty folder is nothing."""
    if output.name in ("", ".."):
        raise OutputError(f"`--output {output}` names no new folder. Give the name of one.")
    if output.is_symlink() or (output.exists() and (not output.is_dir() or any(output.iterdir()))):
        raise OutputError(f"`{output}` is there already and not empty. Give another `--output`, or remove it.")


def room(output: Path) -> int:
    """The bytes that are free where a folder is to be written."""
    parent = next(parent for parent in output.absolute().parents if parent.is_dir())
    return shutil.disk_usage(parent).free


def sweep(parent: Path) -> None:
    """Remove what processes left that no longer live. What cannot be removed stays: it counts for nothing."""
    with contextlib.suppress(OSError):
        for path in list(parent.glob(f".*{ENDING}")):
            with contextlib.suppress(OSError):
                _sweep_folder(path) if path.is_dir() else _sweep_file(path)


def _sweep_folder(folder: Path) -> None:
    lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(folder)
    finally:
        os.close(lock)


def _sweep_file(path: Path) -> None:
    """Remove a file that `files.write` left, whose name has the number of its process."""
    pid = path.name.removesuffix(ENDING).rpartition(".")[2]
    if not pid.isdecimal() or not is_alive(int(pid)):
        path.unlink()


def _locked(output: Path) -> tuple[Path, int]:
    """A hidden folder beside the output, and the lock on it."""
    while True:
        folder = Path(tempfile.mkdtemp(dir=output.parent, prefix=f".{output.name}.", suffix=ENDING))
        lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if folder.stat().st_ino == os.fstat(lock).st_ino:
                folder.chmod(0o777 & ~_umask())  # mkdtemp makes folders that nobody else may read
                return folder, lock
        except FileNotFoundError:  # another process swept it away before it was locked
            pass
        except BlockingIOError:
            pass
        except OSError:  # a file system without locks: nothing is swept there either
            return folder, lock
        os.close(lock)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _make_parents(folder: Path) -> list[Path]:
    missing = [parent for parent in (folder, *folder.parents) if not parent.exists()][::-1]
    folder.mkdir(parents=True, exist_ok=True)
    return missing


def _check_room(output: Path, size: int) -> None:
    free = room(output)
    if free < size:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(output))


@contextlib.contextmanager
def _explained(output: Path, size: int) -> Iterator[None]:
    """An error of the operating system as one of ours."""
    try:
        yield
    except OSError as error:
        place = error.filename2 or error.filename or output
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise OutputError(
                f"`{output}` needs {size / 1e6:.1f} MB, and there is no room for `{place}` ({error.strerror}; "
                f"{room(output) / 1e6:.1f} MB are free). Nothing was kept. Make room, or give another `--output`."
            ) from error
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
            raise OutputError(f"`{output}` has meanwhile been written by another process. Nothing was kept.") from error
        raise OutputError(f"`{place}` cannot be written: {error.strerror or error}. Nothing was kept.") from error


def _sync_all(folder: Path) -> None:
    for path in sorted(folder.rglob("*")):
        sync(path)
    sync(folder)
