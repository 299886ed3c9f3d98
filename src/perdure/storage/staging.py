"""A folder that appears whole or not at all: written beside its place, synced, renamed.

`perdure.storage.partial` makes the hidden folder, and removes those of dead processes.
"""

import contextlib
import errno
import os
import re
import shutil
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

from safetensors import SafetensorError

from perdure.errors import OutputError, PerdureError
from perdure.storage import partial
from perdure.storage.files import sync, sync_names

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
SYSTEM_ERROR = re.compile(r"\(os error (\d+)\)")
"""The end of a system error's message in Rust libraries (safetensors, tokenizers)."""


@contextlib.contextmanager
def new_folder(
    output: Path, *, size: int, check: Callable[[], None] | None = None
) -> Iterator[Path]:
    """Make a folder to write into, which becomes `output` when the block ends, or vanishes.

    Its files get the permissions that the umask leaves, whatever library wrote them.

    Parameters
    ----------
    size
        The number of bytes to be written; if there is no room for them, it fails at once.
    check
        Called before the folder takes its place, and again afterwards; if it raises, the folder
        is not kept.

    Raises
    ------
    OutputError
        `output` already exists, the disk is full, or writing is not allowed.
    """
    made: list[Path] = []
    try:
        # Before anything is computed, and before any parent is made.
        with _explained(output, size):
            check_free(output)
            made = _make_parents(output.parent)
            _check_room(output, size)
        with hidden_folder(output.parent) as folder:
            with _explained(output, size):
                yield folder
                _settle(folder)
                if check:
                    check()
                # Fails if another process has put a file or a full folder there meanwhile.
                os.rename(folder, output)
            sync_names(output.parent)
            if check:
                _check_or_remove(output, check)
    except BaseException:
        # Innermost first. A parent in which somebody else has written meanwhile stays.
        for parent in reversed(made):
            with contextlib.suppress(OSError):
                parent.rmdir()
        raise


@contextlib.contextmanager
def hidden_folder(parent: Path) -> Iterator[Path]:
    """Make a folder under an unpredictable name, which is removed when the block ends.

    If this process is killed, the next one that makes such a folder beside it removes it.

    Raises
    ------
    OutputError
        It cannot be made.
    """
    partial.sweep(parent)
    with _explained(parent, 0):
        folder, lock = partial.new_folder(parent)
    try:
        yield folder
    finally:
        partial.remove(folder)
        os.close(lock)


def check_free(output: Path) -> None:
    """Raise `OutputError` if something exists at this path; an empty folder is allowed."""
    if output.name in ("", ".."):
        raise OutputError(f"`--output {output}` names no new folder. Give the name of one.")
    taken = output.is_symlink()
    if not taken and output.exists():
        taken = not output.is_dir() or any(output.iterdir())
    if taken:
        raise OutputError(
            f"`{output}` already exists and is not empty. Give another `--output`, or remove it."
        )


def room(output: Path) -> int:
    """Return the free bytes on the disk that a folder will be written to."""
    # The parents themselves may not have been made yet.
    parent = next(parent for parent in output.absolute().parents if parent.is_dir())
    return shutil.disk_usage(parent).free


def _make_parents(folder: Path) -> list[Path]:
    """Make a folder and its parents; return those that were missing, outermost first."""
    missing = [parent for parent in (folder, *folder.parents) if not parent.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    return missing[::-1]


def _check_room(output: Path, size: int) -> None:
    free = room(output)
    if free < size:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(output))


@contextlib.contextmanager
def _explained(output: Path, size: int) -> Iterator[None]:
    """Turn a system error into one of ours, even if a library has wrapped it in its own."""
    try:
        yield
    except PerdureError:
        raise
    except OSError as error:
        raise _sentence(error, output, size) from error
    except Exception as error:  # tokenizers raises no narrower class
        system = SYSTEM_ERROR.search(str(error))
        if system:
            number = int(system[1])
            raise _sentence(OSError(number, os.strerror(number)), output, size) from error
        if isinstance(error, SafetensorError):
            raise OutputError(
                f"`{output}` cannot be written: {error}. Nothing was kept."
            ) from error
        raise


def _sentence(error: OSError, output: Path, size: int) -> OutputError:
    """Return a system error as a sentence for the user, who gave `output`."""
    # After a failed rename, `filename2` is the target; `filename` is a hidden name of ours.
    path = error.filename2 or error.filename or output
    if error.errno in NO_ROOM:
        return OutputError(
            f"`{output}` needs {size / 1e6:.1f} MB, and there is no room for `{path}` "
            f"({error.strerror}; {room(output) / 1e6:.1f} MB are free). Nothing was kept. "
            "Make room, or give another `--output`."
        )
    if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
        return OutputError(
            f"`{output}` has meanwhile been written by another process. Nothing was kept."
        )
    return OutputError(f"`{path}` cannot be written: {error.strerror or error}. Nothing was kept.")


def _settle(folder: Path) -> None:
    """Give everything in a folder the permissions of the folder itself, and sync it.

    Some libraries write files that only their owner may read.
    """
    allowed = stat.S_IMODE(folder.stat().st_mode) & 0o777
    for path in sorted(folder.rglob("*")):
        # `chmod` would follow a link, and change a file outside of the folder.
        if path.is_symlink():
            raise OutputError(f"`{path}` is a link, which is not followed. Nothing was kept.")
        path.chmod(allowed if path.is_dir() else allowed & 0o666)
        sync(path)
    sync(folder)


def _check_or_remove(output: Path, check: Callable[[], None]) -> None:
    """Remove a folder again if its sources changed while it was renamed."""
    try:
        check()
    except PerdureError:
        # Renamed first, so that it vanishes as a whole.
        aside = partial.new_path(output.parent)
        with _explained(output, 0):
            os.rename(output, aside)
            shutil.rmtree(aside)
        raise
