"""One's own data as tasks: anything that `datasets.load_dataset` reads."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
import datasets.config
import numpy as np
from datasets import ClassLabel, Dataset

from perdure.errors import DataError
from perdure.image_folder import has_metadata, read_image_folder
from perdure.images import image_column
from perdure.splits import SPLIT_NAMES, divided
from perdure.stream import SPLITS, Split, Task

BUILDERS = {".csv": "csv", ".tsv": "csv", ".json": "json", ".jsonl": "json", ".parquet": "parquet"}
SHARES: dict[Split, float] = {"test": 0.2, "validation": 0.1}


def read_tasks(
    data: str | Mapping[str, str],
    *,
    name: str | None = None,
    text: str | None = None,
    image: str | None = None,
    label: str = "label",
    task: str | None = None,
    config: str | None = None,
    encoding: str = "utf-8",
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
        The column that holds the input; by default `text` or `image`.
    label
        The column that holds the class.
    task
        The column that says which task a row belongs to.
    config
        The configuration of a hub data set.
    encoding
        Of text files.
    seed
        If there is no test split, a fifth of the examples is set apart for it; if there is no validation split, a
        tenth of what is left: class by class, drawn with this seed.

    Raises
    ------
    DataError
        A file or column is missing, a text is not in the encoding, a value is empty, a class has too few examples, or a
        class of validation or test does not occur in training.
    """
    if isinstance(data, Mapping) and not (name or task):
        raise DataError("Give the task a `name`: `data` names several files.")
    splits = _load(data, config, encoding)
    source = data if isinstance(data, str) else str(data.get("train"))
    column = _input_column(splits, text, image, source)
    for wanted in filter(None, [column, label, task]):
        _require(splits, wanted, source)
    kind = "image" if image or (not text and column == "image") else "text"
    if kind == "image":
        splits = {split: image_column(rows, column, _where(data, split)) for split, rows in splits.items()}
    parts = _by_task(splits, task) if task else {name or Path(source).stem: splits}
    return [_task(title, part, (kind, column, label), seed) for title, part in parts.items()]


def _load(data: str | Mapping[str, str], config: str | None, encoding: str) -> dict[Split, Dataset]:
    files = {"train": data} if isinstance(data, str) else dict(data)
    if "train" not in files or not set(files) <= set(SPLITS):
        raise DataError(f"`data` names the splits {list(files)}; it needs `train`, and can have {list(SPLITS)}.")
    suffix = Path(files["train"]).suffix.lower()
    if suffix in BUILDERS:
        options: dict[str, Any] = {}
        if suffix != ".parquet":
            for path in files.values():
                _check_text(path, encoding)
            options["encoding"] = encoding
        if BUILDERS[suffix] == "csv":  # only an empty cell is empty, not one that says NA or None
            options |= {"sep": "\t" if suffix == ".tsv" else ",", "keep_default_na": False, "na_values": [""]}
        found = _load_dataset(files, (BUILDERS[suffix],), {"data_files": files, **options})
    elif Path(files["train"]).is_dir() and not _has_tables(Path(files["train"])):
        found = _load_images(files)
    else:
        found = from_hub(files["train"], config)
    return {split: found[key] for split, keys in SPLIT_NAMES.items() for key in keys if key in found}


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


def _where(data: str | Mapping[str, str], split: Split) -> str:
    """The table that a row of a split is in, for errors."""
    if isinstance(data, Mapping):
        return Path(data[split]).name
    return Path(data).name if Path(data).exists() else f"{data}, {split}"


def _check_text(path: str, encoding: str) -> None:
    try:
        with open(path, encoding=encoding) as file:
            for _ in file:
                pass
    except FileNotFoundError as error:
        raise DataError(f"There is no file `{path}`.") from error
    except LookupError as error:
        raise DataError(f"There is no encoding `{encoding}`. Try `utf-8` or `latin-1`.") from error
    except UnicodeError as error:
        raise DataError(f"`{path}` is not written in {encoding}. Save it as UTF-8, or give its `encoding`.") from error


def _has_tables(folder: Path) -> bool:
    return any(path.suffix.lower() in BUILDERS for path in folder.iterdir())


def _load_dataset(files: Mapping[str, str], arguments: Sequence[str], options: Mapping[str, Any]) -> Any:
    """`datasets.load_dataset`, quietly, with one sentence for whatever goes wrong."""
    verbosity, bars = datasets.logging.get_verbosity(), datasets.is_progress_bar_enabled()
    counts = datasets.config.HF_UPDATE_DOWNLOAD_COUNTS
    datasets.config.HF_UPDATE_DOWNLOAD_COUNTS = False  # else the hub is told of each table, of one's own too
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)
    datasets.disable_progress_bars()
    try:
        return datasets.load_dataset(*arguments, **options)
    except Exception as error:  # datasets wraps whatever its readers raise
        where = ", ".join(f"`{path}`" for path in files.values())
        reason = str(error.__cause__ or error).strip().splitlines()[0]
        if "corresponds to no data" in reason:
            reason = "it has no rows"
        raise DataError(f"{where} could not be read: {reason}.") from error
    finally:
        datasets.config.HF_UPDATE_DOWNLOAD_COUNTS = counts
        datasets.logging.set_verbosity(verbosity)
        if bars:
            datasets.enable_progress_bars()


def from_hub(name: str, config: str | None = None) -> Any:
    """All splits of a data set on the hub.

    Raises
    ------
    DataError
        It cannot be had.
    """
    return _load_dataset({"train": name}, (name, *([config] if config else [])), {})


def _input_column(splits: Mapping[Split, Dataset], text: str | None, image: str | None, source: str) -> str:
    columns = next(iter(splits.values())).column_names if splits else []
    if not splits:
        raise DataError(f"`{source}` has no split named `train`.")
    guess = text or image or next((name for name in ("text", "image") if name in columns), None)
    if guess is None:
        raise DataError(f"`{source}` has the columns {columns}: say which holds the input, with `text=…` or `image=…`.")
    return guess


def _require(splits: Mapping[Split, Dataset], column: str, source: str) -> None:
    for split, data in splits.items():
        if column not in data.column_names:
            raise DataError(f"`{source}`, split `{split}`, has no column `{column}`. Its columns: {data.column_names}.")


def _by_task(splits: Mapping[Split, Dataset], column: str) -> dict[str, dict[Split, Dataset]]:
    for split, data in splits.items():
        _no_gaps(f"Split `{split}`", data, column)
    values = {split: np.array([str(value) for value in data[column]]) for split, data in splits.items()}
    titles = dict.fromkeys(values["train"].tolist())
    return {
        title: {split: data.select(np.flatnonzero(values[split] == title)) for split, data in splits.items()}
        for title in titles
    }


def _task(title: str, splits: Mapping[Split, Dataset], columns: tuple[str, str, str], seed: int) -> Task:
    kind, column, label = columns
    plain: dict[Split, Dataset] = {split: _plain(title, split, data, columns) for split, data in splits.items()}
    names = _class_names(plain["train"], splits["train"], label)
    index = {value: i for i, value in enumerate(names)}
    labelled: dict[Split, Dataset] = {}
    for split, data in plain.items():
        unseen = sorted({value for value in data["label"] if value not in index})
        if unseen:
            raise DataError(
                f"Task `{title}`, split `{split}`, has the label `{unseen[0]}`, which does not occur in training. "
                "Correct it, or give training examples of it."
            )
        numbers = [index[value] for value in data["label"]]
        labelled[split] = data.remove_columns("label").add_column("label", numbers)
    for split, share in SHARES.items():
        if split not in labelled:
            _enough(title, labelled["train"], names, split)
            size = round(share * len(labelled["train"]))
            labelled[split], labelled["train"] = divided(labelled["train"], size, seed)
    return Task(title, tuple(names), labelled["train"], labelled["validation"], labelled["test"])


def _plain(title: str, split: str, data: Dataset, columns: tuple[str, str, str]) -> Dataset:
    """The two columns by our names, labels as text, nothing empty."""
    kind, column, label = columns
    for name in (column, label) if kind == "text" else (label,):
        _no_gaps(f"Task `{title}`, split `{split}`", data, name)
    labels = data.features[label]
    values = [labels.int2str(v) if isinstance(labels, ClassLabel) and v >= 0 else str(v) for v in data[label]]
    inputs = data.select_columns([column]).rename_columns({column: kind} if column != kind else {})
    if kind == "text" and inputs.features["text"].dtype not in ("string", "large_string"):
        inputs = Dataset.from_dict({"text": [str(value) for value in inputs["text"]]})
    return inputs.add_column("label", values)


def _no_gaps(where: str, data: Dataset, column: str) -> None:
    for row, value in enumerate(data[column]):
        if value is None:
            raise DataError(f"{where}: row {row + 1} has nothing in column `{column}`.")


def _order(name: str) -> tuple[bool, float, str]:
    """Numbers first, by their value."""
    try:
        return False, float(name), name
    except ValueError:
        return True, 0.0, name


def _class_names(plain: Dataset, original: Dataset, label: str) -> list[str]:
    """The classes in their own order if the data declares one, else sorted (numbers by value)."""
    present = set(plain["label"])
    feature = original.features[label]
    if isinstance(feature, ClassLabel):
        return [name for name in feature.names if name in present]
    return sorted(present, key=_order)


def _enough(title: str, train: Dataset, names: Sequence[str], split: Split) -> None:
    counts = np.bincount(train["label"][:], minlength=len(names))
    if counts.min() < 2:
        raise DataError(
            f"Task `{title}`: class `{names[int(counts.argmin())]}` has too few examples to set some apart for "
            f"`{split}`. Give at least three of each class, or a `{split}` file of its own."
        )
