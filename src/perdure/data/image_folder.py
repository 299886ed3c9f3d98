"""Image folders with one subfolder per class; links are followed, wildcards are not expanded."""

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
"""The words that mark a folder as a split, as in the `imagefolder` loader of `datasets`."""

METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
"""The files in which the `imagefolder` loader of `datasets` expects metadata about the images."""

DEEPEST = 8
"""The maximum nesting depth of folders, which links could otherwise make very large."""

EXPECTED = ("thumbs.db", "desktop.ini", "readme.md", "readme.txt", "license", "license.txt")
"""Files that are often found next to images, and are ignored without a warning."""

Images = Sequence[tuple[str, ...]]
"""The paths of images relative to the folder, each as a tuple of its parts."""


def has_metadata(folder: str | Path) -> bool:
    """Return whether a folder contains a metadata file for its images.

    If so, the classes are read from a column of that file instead of from folder names.
    """
    return any(parts[-1] in METADATA for parts in _walk(Path(folder)))


def read_image_folder(folder: str | Path) -> dict[str, Dataset]:
    """Read a folder of images into one data set per split, with the columns `image` and `label`.

    The class of an image is the name of its folder. If all folders at a level above the
    class folders are named like splits, such as `train` and `test`, they become the
    splits; otherwise all images are used for training. Hidden files and folders are
    skipped.

    Raises
    ------
    DataError
        There are no images, their classes or splits are ambiguous, a folder cannot be
        read, or a link leads back to a parent folder.
    """
    images = _images(folder)
    level = _level_of_splits(folder, images)
    if level is None:
        return _tables(folder, {"train": images})
    splits: dict[str, list[tuple[str, ...]]] = {}
    for parts in images:
        # The name is never empty, because all folders at this level are named like splits.
        split = _split_of(parts[level]) or ""
        splits.setdefault(split, []).append(parts)
    return _tables(folder, splits)


def read_images(folder: str | Path) -> Dataset:
    """Read all images in a folder and its subfolders, without classes, in the column `image`.

    Raises
    ------
    DataError
        There are no images, a folder cannot be read, or a link leads back to a parent folder.
    """
    root = Path(folder).expanduser().resolve()
    paths = []
    for parts in _walk(root):
        if Path(parts[-1]).suffix.lower() in endings():
            paths.append(str(root.joinpath(*parts)))
    if not paths:
        raise DataError(f"`{folder}` contains no images, such as `.jpg` or `.png`.")
    return Dataset.from_dict({"image": sorted(paths)}, features=Features({"image": Image()}))


def _tables(folder: str | Path, splits: Mapping[str, Images]) -> dict[str, Dataset]:
    """Return a data set with `image` and `label` for each split; all splits share their classes."""
    root = Path(folder).expanduser().resolve()
    names: set[str] = set()
    for images in splits.values():
        names.update(parts[-2] for parts in images)
    classes = sorted(names)
    index = {name: i for i, name in enumerate(classes)}
    features = Features({"image": Image(), "label": ClassLabel(names=classes)})

    tables = {}
    for split, images in splits.items():
        # Sorted by full path, like `imagefolder`, because the digest of a split depends on order.
        ordered = sorted(images, key=lambda parts: str(root.joinpath(*parts)))
        columns = {
            "image": [str(root.joinpath(*parts)) for parts in ordered],
            "label": [index[parts[-2]] for parts in ordered],
        }
        tables[split] = Dataset.from_dict(columns, features=features)
    return tables


def _images(folder: str | Path) -> Images:
    """Return the paths of the images in a folder, which must all be at the same depth."""
    images: list[tuple[str, ...]] = []
    others: list[tuple[str, ...]] = []
    for parts in _walk(Path(folder).expanduser()):
        name = parts[-1].lower()
        if Path(name).suffix in endings():
            images.append(parts)
        elif name not in EXPECTED:
            others.append(parts)
    if not images:
        raise DataError(
            f"`{folder}` contains no images, such as `.jpg` or `.png`. "
            "Give a folder with one subfolder of images per class."
        )
    if others:
        example = "/".join(others[0])
        warnings.warn(
            f"`{folder}` contains files without an image extension, which are skipped: "
            f"{len(others)}, such as `{example}`.",
            PerdureWarning,
            stacklevel=5,  # `read_tasks`
        )
    # One image at each depth, for the message.
    by_depth = {len(parts): "/".join(parts) for parts in images}
    if len(by_depth) > 1:
        first, second, *_ = by_depth.values()
        raise DataError(
            f"The images in `{folder}` are not all at the same depth: `{first}` and `{second}`. "
            "Put each image directly into the folder of its class."
        )
    if 1 in by_depth:
        raise DataError(
            f"The images are directly in `{folder}`. Put them into one folder per class."
        )
    return images


def _level_of_splits(folder: str | Path, images: Images) -> int | None:
    """Return the level (counted from 0) at which the folders are splits, or None."""
    levels = len(images[0]) - 1
    classes = {parts[-2] for parts in images}
    if all(map(_split_of, classes)):
        raise DataError(
            f"The folders in `{folder}` that contain the images are named like splits: "
            f"{sorted(classes)}. Put one folder per class into each of them."
        )
    # From the outside in. A folder that is alone at its level, as in many archives, is
    # skipped; the first level with several folders decides.
    for level in range(levels - 1):
        names = sorted({parts[level] for parts in images})
        splits = [name for name in names if _split_of(name)]
        if len(splits) == len(names):
            return level
        if splits:
            # A wrong guess would treat test images as a class, or a class as a split.
            others = [name for name in names if name not in splits]
            raise DataError(
                f"`{folder}` has the folder `{splits[0]}`, which is named like a split, next to "
                f"`{others[0]}`, which is not. Rename or move one of them."
            )
        if len(names) > 1:
            return None
    return None


def _split_of(name: str) -> str | None:
    """Return the split to which the name of a folder refers, or None.

    For instance, `train`, `seg_train` and `Train-2` all refer to the training split.
    """
    words = re.split(r"[-._ 0-9]+", name.lower())
    for split, known in SPLIT_WORDS.items():
        if any(word in known for word in words):
            return split
    return None


def _walk(folder: Path, above: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Yield the files in a folder and its subfolders, in sorted order.

    Each file is a tuple of the parts of its path relative to the folder. Links are
    followed. `above` contains the real paths of the parent folders.
    """
    real = os.path.realpath(folder)  # unlike `resolve`, does not fail if a link points to itself
    if real in above:
        raise DataError(
            f"`{folder}` is a link to a folder that contains it, without end. Remove it."
        )
    if len(above) > DEEPEST:
        raise DataError(
            f"`{folder}` is nested too deeply: at most {DEEPEST} levels of folders are read."
        )
    try:
        names = sorted(os.listdir(folder))
    except OSError as error:
        raise DataError(f"`{folder}` cannot be read ({error.strerror}).") from error
    for name in names:
        # Archives made by macOS repeat every file name in `__MACOSX`, which contains no images.
        if name.startswith(".") or name == "__MACOSX":
            continue
        if not _is_text(name):
            raise DataError(
                f"`{folder}` contains a name that is not UTF-8: {os.fsencode(name)!r}. Rename it."
            )
        if os.path.isdir(folder / name):
            for parts in _walk(folder / name, (*above, real)):
                yield (name, *parts)
        else:
            yield (name,)


def _is_text(name: str) -> bool:
    # Python decodes a name that is not UTF-8 to a string with unpaired surrogates.
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True
