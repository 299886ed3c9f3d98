"""Atomic writes of entire folders.

The files are written to a hidden folder next to the output, which is then renamed.
`perdure.storage.partial` creates the hidden folder, and removes hidden folders of dead
processes.
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
"""The error number at the end of a Rust library's message (safetensors, tokenizers)."""


@contextlib.contextmanager
def new_folder(
    output: Path, *, size: int, check: Callable[[], None] | None = None
) -> Iterator[Path]:
    """Create a temporary folder, which becomes `output` if the block succeeds.

    If the block raises, the folder is removed. Its files get the permissions that the
    umask allows, no matter which library wrote them.

    Parameters
    ----------
    size
        The number of bytes to be written. If there is less free space, an error is raised
        before anything is written.
    check
        A function called before the folder is renamed to `output`, and again afterwards;
        if it raises, the folder is not kept.

    Raises
    ------
    OutputError
        `output` already exists or cannot be written, or the disk is full.
    """
    made: list[Path] = []
    try:
        # Before anything is computed, and before any parent is created.
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
                # Fails if another process has created a file or a non-empty folder there.
                os.rename(folder, output)
            sync_names(output.parent)
            if check:
                _check_or_remove(output, check)
    except BaseException:
        # Innermost first. A parent that others have written to in the meantime is kept.
        for parent in reversed(made):
            with contextlib.suppress(OSError):
                parent.rmdir()
        raise


@contextlib.contextmanager
def hidden_folder(parent: Path) -> Iterator[Path]:
    """Create a folder under an unpredictable name, which is removed when the block ends.

    If this process is killed, the next one that creates a folder in `parent` removes it.

    Raises
    ------
    OutputError
        The folder cannot be created.
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
        raise OutputError(f"`--output {output}` is not the name of a new folder. Give one.")
    taken = output.is_symlink()
    if not taken and output.exists():
        taken = not output.is_dir() or any(output.iterdir())
    if taken:
        raise OutputError(
            f"`{output}` already exists and is not empty. Give another `--output`, or remove it."
        )


def room(output: Path) -> int:
    """Return the number of free bytes on the disk to which a folder will be written."""
    # Some of the parents may not exist yet.
    parent = next(parent for parent in output.absolute().parents if parent.is_dir())
    return shutil.disk_usage(parent).free


def _make_parents(folder: Path) -> list[Path]:
    """Create a folder and its parents; return the ones that were missing, outermost first."""
    missing = [parent for parent in (folder, *folder.parents) if not parent.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    return missing[::-1]


def _check_room(output: Path, size: int) -> None:
    free = room(output)
    if free < size:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(output))


@contextlib.contextmanager
def _explained(output: Path, size: int) -> Iterator[None]:
    """Turn a system error into an `OutputError`, even if a library has wrapped it."""
    try:
        yield
    except PerdureError:
        raise
    except OSError as error:
        raise _output_error(error, output, size) from error
    except Exception as error:  # tokenizers raises no narrower class
        system = SYSTEM_ERROR.search(str(error))
        if system:
            number = int(system[1])
            raise _output_error(OSError(number, os.strerror(number)), output, size) from error
        if isinstance(error, SafetensorError):
            raise OutputError(
                f"`{output}` cannot be written: {error}. Nothing was kept."
            ) from error
        raise


def _output_error(error: OSError, output: Path, size: int) -> OutputError:
    """Return a system error as an `OutputError` that names the user's `output`."""
    # After a failed rename, `filename2` is the target; `filename` is our hidden folder.
    path = error.filename2 or error.filename or output
    if error.errno in NO_ROOM:
        return OutputError(
            f"`{output}` needs {size / 1e6:.1f} MB, and there is no room for `{path}` "
            f"({error.strerror}; {room(output) / 1e6:.1f} MB are free). Nothing was kept. "
            "Free some space, or give another `--output`."
        )
    if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
        return OutputError(
            f"Another process has written `{output}` in the meantime. Nothing was kept."
        )
    return OutputError(f"`{path}` cannot be written: {error.strerror or error}. Nothing was kept.")


def _settle(folder: Path) -> None:
    """Give all files in a folder the permissions of the folder, and sync them to disk.

    Some libraries write files that only their owner can read.
    """
    allowed = stat.S_IMODE(folder.stat().st_mode) & 0o777
    for path in sorted(folder.rglob("*")):
        # `chmod` would follow a link, and change a file outside the folder.
        if path.is_symlink():
            raise OutputError(f"`{path}` is a link, which is not followed. Nothing was kept.")
        path.chmod(allowed if path.is_dir() else allowed & 0o666)
        sync(path)
    sync(folder)


def _check_or_remove(output: Path, check: Callable[[], None]) -> None:
    """Run `check` on a folder that was just renamed; if it raises, remove the folder."""
    try:
        check()
    except PerdureError:
        # Renamed first, so that the entire folder disappears in one step.
        aside = partial.new_path(output.parent)
        with _explained(output, 0):
            os.rename(output, aside)
            shutil.rmtree(aside)
        raise
