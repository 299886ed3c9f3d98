"""One's own data as tasks: tables, folders of images, and data sets of the hub."""

import errno
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import datasets.config
import numpy as np
from datasets import Dataset

from perdure.data.class_names import complaint, in_order, shown
from perdure.data.examples import Columns, declared_classes, from_dataset, from_tables
from perdure.data.image_folder import has_metadata, read_image_folder
from perdure.data.images import image_column
from perdure.data.rows import ENDINGS, Table
from perdure.data.splits import SPLIT_NAMES, divided
from perdure.data.task import SPLITS, Split, Task
from perdure.errors import DataError

SHARES: dict[Split, float] = {"test": 0.2, "validation": 0.1}


def read_tasks(
    data: str | Mapping[str, str],
    *,
    name: str | None = None,
    text: str | list[str] | None = None,
    image: str | None = None,
    label: str = "label",
    task: str | None = None,
    config: str | None = None,
    encoding: str = "utf-8",
    delimiter: str | None = None,
    seed: int = 0,
) -> list[Task]:
    """Read one table as one task, or as several by the values of its column `task`.

    Parameters
    ----------
    data
        A CSV, TSV, JSON(-lines) or Parquet file, a folder of images in one folder per class, a hub id, or a mapping
        from `train`, `validation` and `test` to files.
    name
        The task's name; by default that of the file.
    text, image
        The column that holds the input; by default `text` or `image`. Two columns of `text` are read as pairs, such as
        a premise and a hypothesis, in this order.
    label
        The column that holds the class.
    task
        The column that says which task a row belongs to.
    config
        The configuration of a hub data set.
    encoding
        Of text files.
    delimiter
        What separates the cells of a CSV file; by default its header decides (see `perdure.data.rows.Table.open`).
    seed
        If there is no test split, a fifth of the examples is set apart for it; if there is no validation split, a
        tenth of what is left: class by class, drawn with this seed.

    Raises
    ------
    DataError
        A file or column is missing, a text is not in the encoding, a cell is empty or holds no text or class, the
        labels look like texts or quantities, a class has too few examples, or a class of validation or test does not
        occur in training.
    """
    if isinstance(data, Mapping) and not (name or task):
        raise DataError("Give the task a `name`: `data` names several files.")
    files = {"train": data} if isinstance(data, str) else dict(data)
    if "train" not in files or not set(files) <= set(SPLITS):
        raise DataError(
            f"`data` names the splits {list(files)}; it needs `train`, and can have {list(SPLITS)}."
        )
    if "" in files.values():
        raise DataError("`data` is empty. Give a file, a folder of images, or a hub id.")
    asked = _Asked(text, image, label, task)
    tables = _tables(files, encoding, delimiter)
    if tables:
        splits, classes = _read_tables(tables, asked)
    else:
        splits, classes = _read_datasets(files, config, asked)
    if "image" in splits["train"].column_names:
        for split, rows in splits.items():
            splits[split] = image_column(rows, "image", _where(files, split))
    parts = _by_task(splits) if task else {name or Path(files["train"]).stem: splits}
    return [_task(title, part, classes, label, seed) for title, part in parts.items()]


@dataclass(frozen=True)
class _Asked:
    """The columns as the caller names them."""

    text: str | list[str] | None
    image: str | None
    label: str
    task: str | None

    def among(self, names: Sequence[str], source: str) -> Columns:
        """Return the columns, of which the input may be found by its usual name."""
        if self.text and self.image:
            raise DataError("Give either `text` or `image`: a task has one kind of input.")
        texts = [self.text] if isinstance(self.text, str) else list(self.text or [])
        if len(texts) > 2 or len(set(texts)) < len(texts):
            raise DataError(
                f"`text` names the columns {texts}. Give one column, or two different ones for pairs."
            )
        if not texts and not self.image:
            if "text" in names:
                texts = ["text"]
            elif "image" not in names:
                raise DataError(
                    f"{source} has the columns {list(names)}: say which holds the input, with `text=…` or `image=…`."
                )
        if not texts:
            return Columns("image", (self.image or "image",), self.label, self.task)
        return Columns("text", tuple(texts), self.label, self.task)


# -- tables in files


def _tables(
    files: Mapping[str, str], encoding: str, delimiter: str | None
) -> dict[Split, list[Table]] | None:
    """Open the tables of each split; nothing if the data is no table in a file."""
    parts: dict[Split, list[Path]] = {
        split: [Path(files[split])] for split in SPLITS if split in files
    }
    first = parts["train"][0]
    if os.path.isdir(first):  # unlike `Path.is_dir` it takes any name
        if len(files) > 1 or not _has_tables(first):
            return None
        parts = _parts(first)
    elif first.suffix.lower() not in ENDINGS and not os.path.exists(first):
        return None  # the name of a data set on the hub
    return {
        split: [Table.open(path, encoding=encoding, delimiter=delimiter) for path in paths]
        for split, paths in parts.items()
    }


def _has_tables(folder: Path) -> bool:
    """Return whether a folder holds tables, and not images with a table that describes them."""
    return any(path.stem != "metadata" for path in _files(folder))


def _files(folder: Path) -> list[Path]:
    """Return the tables in a folder, or where `datasets` puts them, in its folder `data`."""
    for place in (folder, folder / "data"):
        paths = sorted(place.iterdir()) if place.is_dir() else []
        visible = [path for path in paths if not path.name.startswith(".")]
        tables = [path for path in visible if path.suffix.lower() in ENDINGS and path.is_file()]
        if tables:
            return tables
    return []


def _parts(folder: Path) -> dict[Split, list[Path]]:
    """Sort the tables in a folder into splits by the words that their names begin with."""
    tables = _files(folder)
    if len(tables) == 1:
        return {"train": tables}
    parts: dict[Split, list[Path]] = {}
    for path in tables:
        word = re.split("[^a-z]", path.stem.lower())[0]
        for split, words in SPLIT_NAMES.items():
            if word in words:
                parts.setdefault(split, []).append(path)
    if "train" not in parts:
        names = [path.name for path in tables]
        raise DataError(
            f"`{folder}` holds the tables {names}. Name one of them, or call them `train…` and `test…`."
        )
    return parts


def _read_tables(
    tables: Mapping[Split, Sequence[Table]], asked: _Asked
) -> tuple[dict[Split, Dataset], list[str] | None]:
    """Read the examples of each split, and the classes that the first table declares."""
    first = tables["train"][0]
    columns = asked.among(first.columns, f"`{first.path}`")
    splits: dict[Split, Dataset] = {
        split: from_tables(parts, columns) for split, parts in tables.items()
    }
    return splits, first.class_names.get(columns.label)


# -- folders of images, and what `datasets` reads


def _load_images(files: Mapping[str, str]) -> Any:
    """The splits of a folder of images."""
    folder = files["train"]
    if len(files) > 1:
        raise DataError(
            f"`data` names the folder `{folder}` and others. Give one folder, with a folder for each split in it."
        )
    if has_metadata(folder):
        return _load_dataset(files, ("imagefolder",), {"data_dir": folder})
    return read_image_folder(folder)


def _where(files: Mapping[str, str], split: Split) -> str:
    """The table that a row of a split is in, for errors."""
    file = files.get(split, files["train"])
    return Path(file).name if os.path.exists(file) else f"{file}, {split}"


def _read_datasets(
    files: Mapping[str, str], config: str | None, asked: _Asked
) -> tuple[dict[Split, Dataset], list[str] | None]:
    """Read the examples of each split of a folder of images, or of a data set on the hub."""
    source = files["train"]
    found = _load_images(files) if os.path.isdir(source) else from_hub(source, config)
    splits: dict[Split, Dataset] = {
        split: found[key] for split, keys in SPLIT_NAMES.items() for key in keys if key in found
    }
    if "train" not in splits:
        raise DataError(f"`{source}` has no split named `train`.")
    columns = asked.among(splits["train"].column_names, f"`{source}`")
    examples: dict[Split, Dataset] = {}
    for split, data in splits.items():
        examples[split] = from_dataset(data, f"`{source}`, split `{split}`", columns)
    return examples, declared_classes(splits["train"], columns.label)


def _load_dataset(
    files: Mapping[str, str], arguments: Sequence[str], options: Mapping[str, Any]
) -> Any:
    """`datasets.load_dataset`, quietly, with one sentence for whatever goes wrong."""
    verbosity, bars = datasets.logging.get_verbosity(), datasets.is_progress_bar_enabled()
    counts = datasets.config.HF_UPDATE_DOWNLOAD_COUNTS
    datasets.config.HF_UPDATE_DOWNLOAD_COUNTS = (
        False  # else the hub is told of each table, of one's own too
    )
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)
    datasets.disable_progress_bars()
    try:
        return datasets.load_dataset(*arguments, **options)
    except Exception as error:  # datasets wraps whatever its readers raise
        where = ", ".join(f"`{path}`" for path in files.values())
        reason = str(error.__cause__ or error).strip().splitlines()[0]
        if "corresponds to no data" in reason:
            reason = "it has no rows"
        if _cannot_be_written(error):
            reason += ". Set `HF_HOME` to a folder where you may write: `datasets` keeps what it fetches there"
        raise DataError(f"{where} could not be read: {reason}.") from error
    finally:
        datasets.config.HF_UPDATE_DOWNLOAD_COUNTS = counts
        datasets.logging.set_verbosity(verbosity)
        if bars:
            datasets.enable_progress_bars()


def _cannot_be_written(error: BaseException) -> bool:
    """Return whether it is the cache of `datasets` that failed: there is no home folder, or it is read-only."""
    reasons = (error, error.__cause__, error.__context__)
    numbers = {reason.errno for reason in reasons if isinstance(reason, OSError)}
    return bool(numbers & {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR})


def from_hub(name: str, config: str | None = None) -> Any:
    """All splits of a data set on the hub.

    Raises
    ------
    DataError
        It cannot be had.
    """
    return _load_dataset({"train": name}, (name, *([config] if config else [])), {})


# -- tasks


def _by_task(splits: Mapping[Split, Dataset]) -> dict[str, dict[Split, Dataset]]:
    """Cut the examples into those of each task, in the order in which training names them."""
    names = {split: np.array(data["task"][:]) for split, data in splits.items()}
    titles = dict.fromkeys(names["train"].tolist())
    return {
        title: {
            split: data.select(np.flatnonzero(names[split] == title))
            for split, data in splits.items()
        }
        for title in titles
    }


def _task(
    title: str,
    splits: Mapping[Split, Dataset],
    declared: Sequence[str] | None,
    column: str,
    seed: int,
) -> Task:
    present = set(splits["train"]["label"][:])
    if not declared and (reason := complaint(splits["train"]["label"][:], column)):
        raise DataError(f"Task `{title}`: {reason[0].lower()}{reason[1:]}")
    names = [name for name in declared if name in present] if declared else in_order(present)
    numbered = {split: _numbered(title, split, data, names) for split, data in splits.items()}
    for split, share in SHARES.items():
        if split not in numbered:
            _enough(title, numbered["train"], names, split)
            size = round(share * len(numbered["train"]))
            numbered[split], numbered["train"] = divided(numbered["train"], size, seed)
    return Task(title, tuple(names), numbered["train"], numbered["validation"], numbered["test"])


def _numbered(title: str, split: str, data: Dataset, names: Sequence[str]) -> Dataset:
    """Return the examples with the numbers of their classes in place of the names."""
    index = {name: i for i, name in enumerate(names)}
    labels = data["label"][:]
    for row, name in zip(data["row"][:], labels, strict=True):
        if name not in index:
            raise DataError(
                f"Task `{title}`, split `{split}`, has the label `{shown(name)}`, which does not occur in "
                f"training (row {row}). Correct it, or give training examples of it."
            )
    rest = [name for name in data.column_names if name not in ("label", "task")]
    numbers = [index[name] for name in labels]
    return data.select_columns(rest).add_column("label", numbers)


def _enough(title: str, train: Dataset, names: Sequence[str], split: Split) -> None:
    counts = np.bincount(train["label"][:], minlength=len(names))
    if counts.min() < 2:
        rare = shown(names[int(counts.argmin())])
        raise DataError(
            f"Task `{title}`: class `{rare}` has too few examples to set some apart for "
            f"`{split}`. Give at least three of each class, or a `{split}` file of its own."
        )
