"""A folder of images, with a folder per class. Names are not patterns; links are followed."""

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
"""The words that mark a folder as a split, as in `imagefolder` of `datasets`."""

METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
"""The files from which `imagefolder` of `datasets` reads columns for the images beside them."""

DEEPEST = 8
"""The maximum nesting depth of folders; links could make it very large."""

EXPECTED = ("thumbs.db", "desktop.ini", "readme.md", "readme.txt", "license", "license.txt")
"""Files that are often found among images, and are ignored without a warning."""

Images = Sequence[tuple[str, ...]]
"""The paths of images, as tuples of their parts relative to the folder."""


def has_metadata(folder: str | Path) -> bool:
    """Return whether a file in the folder describes its images.

    The classes are then columns of that file, not folders.
    """
    return any(parts[-1] in METADATA for parts in _walk(Path(folder)))


def read_image_folder(folder: str | Path) -> dict[str, Dataset]:
    """Read a folder of images: the columns `image` and `label` of each split.

    An image's class is the name of its folder. If the folders above those of the classes all have
    the names of splits, such as `train` and `test`, they are the splits; otherwise all images are
    for training. Hidden files and folders are left out.

    Raises
    ------
    DataError
        There are no images, it is not clear what their classes or splits are, or a link leads back
        to a parent folder.
    """
    images = _images(folder)
    level = _level_of_splits(folder, images)
    if level is None:
        return _tables(folder, {"train": images})
    splits: dict[str, list[tuple[str, ...]]] = {}
    for parts in images:
        # Never an empty name: all folders at this level have the names of splits.
        split = _split_of(parts[level]) or ""
        splits.setdefault(split, []).append(parts)
    return _tables(folder, splits)


def _tables(folder: str | Path, splits: Mapping[str, Images]) -> dict[str, Dataset]:
    """Return the columns `image` and `label` of each split; all splits have the same classes."""
    root = Path(folder).expanduser().resolve()
    names: set[str] = set()
    for images in splits.values():
        names.update(parts[-2] for parts in images)
    classes = sorted(names)
    index = {name: i for i, name in enumerate(classes)}
    features = Features({"image": Image(), "label": ClassLabel(names=classes)})

    tables = {}
    for split, images in splits.items():
        # By whole paths, as `imagefolder` sorts: what a run learned is compared in order.
        ordered = sorted(images, key=lambda parts: str(root.joinpath(*parts)))
        columns = {
            "image": [str(root.joinpath(*parts)) for parts in ordered],
            "label": [index[parts[-2]] for parts in ordered],
        }
        tables[split] = Dataset.from_dict(columns, features=features)
    return tables


def _images(folder: str | Path) -> Images:
    """Return the images in a folder, which must all be at the same depth."""
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
            f"`{folder}` holds no images, such as `.jpg` or `.png`. "
            "Give a folder with a folder of images per class."
        )
    if others:
        example = "/".join(others[0])
        warnings.warn(
            f"`{folder}` holds files that are not images by their ending, and are left out: "
            f"{len(others)}, such as `{example}`.",
            PerdureWarning,
            stacklevel=5,  # `read_tasks`
        )
    # An image of each depth, for the message.
    by_depth = {len(parts): "/".join(parts) for parts in images}
    if len(by_depth) > 1:
        first, second, *_ = by_depth.values()
        raise DataError(
            f"The images in `{folder}` do not lie equally deep: `{first}` and `{second}`. "
            "Put each directly into the folder of its class."
        )
    if 1 in by_depth:
        raise DataError(
            f"The images lie directly in `{folder}`. Put them into one folder per class."
        )
    return images


def _level_of_splits(folder: str | Path, images: Images) -> int | None:
    """Return the level of the folders that are splits, counted from 0, if there is one."""
    levels = len(images[0]) - 1
    classes = {parts[-2] for parts in images}
    if all(map(_split_of, classes)):
        raise DataError(
            f"The folders in `{folder}` that hold the images have the names of splits: "
            f"{sorted(classes)}. Put one folder per class into each of them."
        )
    # From the outside in. Folders that are alone at their level, as archives have them, are
    # passed; the first level with several folders decides.
    for level in range(levels - 1):
        names = sorted({parts[level] for parts in images})
        splits = [name for name in names if _split_of(name)]
        if len(splits) == len(names):
            return level
        if splits:
            # Guessing would hide test images among the classes, or classes among the splits.
            others = [name for name in names if name not in splits]
            raise DataError(
                f"`{folder}` has the folder `{splits[0]}`, which is named like a split, beside "
                f"`{others[0]}`, which is not. Rename or move one of them."
            )
        if len(names) > 1:
            return None
    return None


def _split_of(name: str) -> str | None:
    """Return the split that a name mentions.

    For instance, `train`, `seg_train` and `Train-2` all name the training split.
    """
    words = re.split(r"[-._ 0-9]+", name.lower())
    for split, known in SPLIT_WORDS.items():
        if any(word in known for word in words):
            return split
    return None


def _walk(folder: Path, above: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Yield the files in a folder and in those inside it, in order.

    A file is given as a tuple of its path's parts. Links are followed. `above` lists the real paths
    of its parent folders.
    """
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
        # `__MACOSX` holds a copy of each name, made by the archiver of macOS, with no image in it.
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
    # Python reads a name that is not UTF-8 as text with halves of surrogate pairs.
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True
