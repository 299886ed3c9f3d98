"""A folder of images, in one folder per class: names are names, not patterns, and links are followed."""

import os
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from datasets import ClassLabel, Dataset, Features, Image

from perdure.data.images import endings
from perdure.errors import DataError, PerdureWarning

SPLIT_WORDS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
"""The words that make the name of a folder that of a split, as for `imagefolder` of `datasets`."""

METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
"""The files from which `imagefolder` of `datasets` reads columns for the images beside them."""

DEEPEST = 8
"""The number of folders inside each other that are read: links can make it a very large number."""

EXPECTED = ("thumbs.db", "desktop.ini", "readme.md", "readme.txt", "license", "license.txt")
"""Files that often lie among images. Of others that are no images a warning names one."""

Images = Sequence[tuple[str, ...]]
"""The paths of images as their parts, relative to the folder that is read."""


def has_metadata(folder: str | Path) -> bool:
    """Return whether a file in the folder describes its images, so that their folders are not the classes."""
    return any(parts[-1] in METADATA for parts in _walk(Path(folder)))


def read_image_folder(folder: str | Path) -> dict[str, Dataset]:
    """Read a folder of images: the columns `image` and `label` of each split.

    The class of an image is the name of the folder in which it lies. If the folders above those of the
    classes all have the names of splits, such as `train` and `test`, they are the splits; else all
    images are for training. Hidden files and folders are left out.

    Raises
    ------
    DataError
        There are no images, it is not clear what their classes or splits are, or a link leads back to
        a folder that it lies in.
    """
    images = _images(folder)
    level = _level_of_splits(folder, images)
    if level is None:
        return _tables(folder, {"train": images})
    splits: dict[str, list[tuple[str, ...]]] = {}
    for parts in images:
        splits.setdefault(_split_of(parts[level]) or "", []).append(parts)
    return _tables(folder, splits)


def _tables(folder: str | Path, splits: Mapping[str, Images]) -> dict[str, Dataset]:
    root = Path(folder).expanduser().resolve()
    classes = sorted({parts[-2] for images in splits.values() for parts in images})
    features = Features({"image": Image(), "label": ClassLabel(names=classes)})
    number = {name: index for index, name in enumerate(classes)}
    tables = {}
    for split, images in splits.items():
        # By whole paths, as `imagefolder` sorts: what a run learned is compared in order.
        ordered = sorted(images, key=lambda parts: str(root.joinpath(*parts)))
        columns = {
            "image": [str(root.joinpath(*parts)) for parts in ordered],
            "label": [number[parts[-2]] for parts in ordered],
        }
        tables[split] = Dataset.from_dict(columns, features=features)
    return tables


def _images(folder: str | Path) -> Images:
    """The images in a folder, all at the same depth."""
    images: list[tuple[str, ...]] = []
    others: list[tuple[str, ...]] = []
    for parts in _walk(Path(folder).expanduser()):
        if Path(parts[-1]).suffix.lower() in endings():
            images.append(parts)
        elif parts[-1].lower() not in EXPECTED:
            others.append(parts)
    if not images:
        raise DataError(
            f"`{folder}` holds no images, such as `.jpg` or `.png`. Give a folder with a folder of images per class."
        )
    if others:
        warnings.warn(
            f"`{folder}` holds files that are no images by their ending, and are left out: {len(others)}, such as "
            f"`{'/'.join(others[0])}`.",
            PerdureWarning,
            stacklevel=5,
        )
    by_depth = {len(parts): "/".join(parts) for parts in images}
    if len(by_depth) > 1:
        first, second, *_ = by_depth.values()
        raise DataError(
            f"The images in `{folder}` do not lie equally deep: `{first}` and `{second}`. Put each right into the "
            "folder of its class."
        )
    if 1 in by_depth:
        raise DataError(f"The images lie right in `{folder}`. Put them into one folder per class.")
    return images


def _level_of_splits(folder: str | Path, images: Images) -> int | None:
    """The level of the folders that are splits, counted from 0; `None` if there are no such folders."""
    levels = len(images[0]) - 1
    classes = {parts[-2] for parts in images}
    if all(map(_split_of, classes)):
        raise DataError(
            f"The folders in `{folder}` that hold the images have the names of splits: {sorted(classes)}. Put one "
            "folder per class into each of them."
        )
    for level in range(levels - 1):
        names = sorted({parts[level] for parts in images})
        splits = [name for name in names if _split_of(name)]
        if len(splits) == len(names):
            return level
        if splits:
            others = [name for name in names if name not in splits]
            raise DataError(
                f"`{folder}` has the folder `{splits[0]}`, which is named like a split, beside `{others[0]}`, which "
                "is not. Rename or move one of them."
            )
        if len(names) > 1:
            return None
    return None


def _split_of(name: str) -> str | None:
    """The split whose word is in a name: `train`, `seg_train` and `Train-2` are names of the training split."""
    words = re.split(r"[-._ 0-9]+", name.lower())
    for split, known in SPLIT_WORDS.items():
        if any(word in known for word in words):
            return split
    return None


def _walk(folder: Path, above: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The files in a folder and those inside it, each as the parts of its path, in order; links are followed."""
    real = os.path.realpath(folder)  # unlike `resolve`, it does not fail for a link to itself
    if real in above:
        raise DataError(
            f"`{folder}` is a link to a folder that it lies in, without end. Remove it."
        )
    if len(above) > DEEPEST:
        raise DataError(
            f"`{folder}` lies too deep: at most {DEEPEST} folders inside each other are read."
        )
    try:
        names = sorted(os.listdir(folder))
    except OSError as error:
        raise DataError(f"`{folder}` cannot be read ({error.strerror}).") from error
    for name in names:
        if name.startswith(".") or name == "__MACOSX":
            continue
        if not _is_text(name):
            raise DataError(
                f"`{folder}` holds a name that is not UTF-8: {os.fsencode(name)!r}. Rename it."
            )
        if os.path.isdir(folder / name):
            for parts in _walk(folder / name, (*above, real)):
                yield (name, *parts)
        else:
            yield (name,)


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True
