"""One's own data as tasks: anything that `datasets.load_dataset` reads."""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from datasets import ClassLabel, Dataset

from perdure.errors import DataError
from perdure.stream import SPLITS, Split, Task, split_rows

BUILDERS = {".csv": "csv", ".tsv": "csv", ".json": "json", ".jsonl": "json", ".parquet": "parquet"}
SPLIT_NAMES: dict[Split, tuple[str, ...]] = {"train": ("train",), "validation": ("validation", "val", "valid", "dev"), "test": ("test",)}


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
        If there is no test split, a fifth of the examples is set apart for it; if there is no validation split, a tenth of
        what is left: class by class, drawn with this seed.

    Raises
    ------
    DataError
        A file or column is missing, a text is not in the encoding, a value is empty, a class has too few examples, or a
        class of validation or test does not occur in training.
    """
    splits = _load(data, config, encoding)
    source = str(data)
    column = _input_column(splits, text, image, source)
    for wanted in filter(None, [column, label, task]):
        _require(splits, wanted, source)
    kind = "image" if image or (not text and column == "image") else "text"
    parts = _by_task(splits, task) if task else {name or Path(source).stem: splits}
    return [_task(title, part, (kind, column, label), seed) for title, part in parts.items()]


def _load(data: str | Mapping[str, str], config: str | None, encoding: str) -> dict[Split, Dataset]:
    files = {"train": data} if isinstance(data, str) else dict(data)
    suffix = Path(next(iter(files.values()))).suffix.lower()
    unknown = set(files) - set(SPLITS)
    if unknown:
        raise DataError(f"`data` names the split `{unknown.pop()}`; there are {list(SPLITS)}.")
    if suffix in BUILDERS:
        absent = [path for path in files.values() if not Path(path).is_file()]
        if absent:
            raise DataError(f"There is no file `{absent[0]}`.")
        options: dict[str, Any] = {"encoding": encoding} if suffix in (".csv", ".tsv", ".json", ".jsonl") else {}
        options |= {"sep": "\t"} if suffix == ".tsv" else {}
        found = _call(files, encoding, BUILDERS[suffix], data_files=files, **options)
    elif Path(files["train"]).is_dir() and not _has_tables(Path(files["train"])):
        found = _call(files, encoding, "imagefolder", data_dir=files["train"])
    else:
        found = _call(files, encoding, files["train"], *([config] if config else []))
    return {split: found[key] for split, keys in SPLIT_NAMES.items() for key in keys if key in found}


def _has_tables(folder: Path) -> bool:
    return any(path.suffix.lower() in BUILDERS for path in folder.iterdir())


def _call(files: Mapping[str, str], encoding: str, *args: Any, **options: Any) -> Any:
    where = ", ".join(f"`{path}`" for path in files.values())
    try:
        return datasets.load_dataset(*args, **options)
    except Exception as error:  # datasets wraps whatever its readers raise
        causes = [error, error.__cause__, error.__context__]
        if any(isinstance(cause, UnicodeError) for cause in causes):
            raise DataError(f"{where} is not written in {encoding}. Save it as UTF-8, or give its `encoding`.") from error
        reason = str(next(cause for cause in reversed(causes) if cause)).splitlines()[0]
        raise DataError(f"{where} could not be read: {reason}") from error


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
    values = {split: np.array([str(value) for value in data[column]]) for split, data in splits.items()}
    titles = dict.fromkeys(values["train"].tolist())
    return {
        title: {split: data.select(np.flatnonzero(values[split] == title)) for split, data in splits.items()}
        for title in titles
    }


def _task(title: str, splits: Mapping[Split, Dataset], columns: tuple[str, str, str], seed: int) -> Task:
    kind, column, label = columns
    plain = {split: _plain(title, split, data, columns) for split, data in splits.items()}
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
    for split, share in (("test", 0.2), ("validation", 0.1)):
        if split not in labelled:
            labelled |= _divide(title, labelled["train"], names, split, share, seed)  # pyright: ignore
    return Task(title, tuple(names), labelled["train"], labelled["validation"], labelled["test"])


def _plain(title: str, split: str, data: Dataset, columns: tuple[str, str, str]) -> Dataset:
    """The two columns by our names, labels as text, nothing empty."""
    kind, column, label = columns
    for name in (column, label):
        if name == column and kind == "image":
            continue
        for row, value in enumerate(data[name]):
            if value is None:
                raise DataError(f"Task `{title}`, split `{split}`: row {row + 1} has nothing in column `{name}`.")
    labels = data.features[label]
    values = [labels.int2str(v) if isinstance(labels, ClassLabel) and v >= 0 else str(v) for v in data[label]]
    inputs = data.select_columns([column]).rename_columns({column: kind} if column != kind else {})
    if kind == "text" and inputs.features["text"].dtype not in ("string", "large_string"):
        inputs = Dataset.from_dict({"text": [str(value) for value in inputs["text"]]})
    return inputs.add_column("label", values)


def _class_names(plain: Dataset, original: Dataset, label: str) -> list[str]:
    """The classes in their own order if the data declares one, else sorted (numbers by value)."""
    present = set(plain["label"])
    feature = original.features[label]
    if isinstance(feature, ClassLabel):
        return [name for name in feature.names if name in present]
    return sorted(present, key=lambda v: (0, float(v), v) if v.replace(".", "", 1).lstrip("-").isdigit() else (1, 0.0, v))


def _divide(title: str, train: Dataset, names: Sequence[str], split: Split, share: float, seed: int) -> dict[Split, Dataset]:
    labels = list(train["label"])
    few = [name for i, name in enumerate(names) if labels.count(i) < 2]
    if few:
        raise DataError(
            f"Task `{title}`: class `{few[0]}` has too few examples to set some apart for `{split}`. Give at least three "
            f"of each class, or a `{split}` file of its own."
        )
    apart, rest = split_rows(labels, shares=[share], seed=seed)
    return {"train": train.select(rest), split: train.select(apart)}


def divided(data: Dataset, size: int, seed: int) -> tuple[Dataset, Dataset]:
    """About `size` examples, with the shares of the classes kept, and the rest.

    Examples
    --------
    >>> some, rest = divided(Dataset.from_dict({"text": list("abcdef"), "label": [0, 0, 0, 0, 1, 1]}), 3, seed=0)
    >>> some["label"][:], len(rest)
    ([0, 0, 1], 3)
    """
    if size >= len(data):
        return data, data.select([])
    apart, rest = split_rows(list(data["label"]), shares=[size / len(data)], seed=seed)
    return data.select(apart), data.select(rest)


def bounded(
    data: Mapping[Split, Dataset], sizes: Mapping[Split, int | None], seed: int
) -> dict[Split, Dataset]:
    """About `sizes[split]` examples a split, with the shares of the classes kept; `None` takes all.

    Where `data` has no validation split, `sizes["validation"]` training examples become one, at most a fifth
    of them; by default a tenth, at most 500.

    Examples
    --------
    >>> rows = Dataset.from_dict({"text": list("abcdefgh"), "label": [0, 1] * 4})
    >>> parts = bounded({"train": rows, "test": rows}, {"train": 4, "validation": None, "test": None}, seed=0)
    >>> {split: len(part) for split, part in parts.items()}
    {'train': 4, 'test': 8, 'validation': 2}
    """
    for split, size in sizes.items():
        if size is not None and size < 1:
            raise DataError(f"`{split}` must be at least 1, or left out to take all; got {size}.")
    parts = dict(data)
    if "validation" not in parts:
        everything = parts["train"]
        size = min(sizes["validation"] or min(500, len(everything) // 10), len(everything) // 5)
        parts["validation"], parts["train"] = divided(everything, max(1, size), seed)
        if len(set(parts["train"]["label"][:])) < len(set(everything["label"][:])):
            raise DataError("A class has a single training example, none for validation. Give two at least.")
    for split, size in sizes.items():
        if size and split in data:
            parts[split] = divided(parts[split], size, seed)[0]
    return parts


def by_split(data: Dataset, columns: Sequence[str], source: str) -> dict[Split, Dataset]:
    """The rows of a table by its column `split`, with `columns` alone. Rows of other splits are dropped.

    Examples
    --------
    >>> rows = {"text": ["a", "b", "c"], "label": [0, 1, 0], "split": ["train", "test", "other"]}
    >>> parts = by_split(Dataset.from_dict(rows), ["text", "label"], "my.parquet")
    >>> {split: part["text"][:] for split, part in parts.items()}
    {'train': ['a'], 'test': ['b']}
    """
    missing = [column for column in ("split", *columns) if column not in data.column_names]
    if missing:
        raise DataError(f"`{source}` has no column `{missing[0]}`. Its columns: {data.column_names}.")
    names = np.array(data["split"][:])
    inputs = data.select_columns(list(columns))
    found: dict[Split, Dataset] = {
        split: inputs.select(np.flatnonzero(names == key))
        for split, keys in SPLIT_NAMES.items()
        for key in keys
        if key in names
    }
    for split in ("train", "test"):
        if split not in found:
            there = sorted(set(names.tolist()))
            raise DataError(f"`{source}` has no row of the split `{split}`. Its splits: {there}.")
    return found


def of_classes(data: Dataset, numbers: Sequence[int]) -> Dataset:
    """The rows of some classes, whose labels then count from 0 in the order of `numbers`.

    Examples
    --------
    >>> rows = Dataset.from_dict({"text": list("abcd"), "label": [0, 1, 2, 1]})
    >>> of_classes(rows, [2, 1]).to_dict()
    {'text': ['b', 'c', 'd'], 'label': [1, 0, 1]}
    """
    labels = np.array(data["label"][:])
    place = np.full(max(labels.max(initial=0), *numbers) + 2, -1)  # the last is for label -1, no class
    place[list(numbers)] = np.arange(len(numbers))
    mine = place[labels]
    return data.remove_columns("label").add_column("label", mine).select(np.flatnonzero(mine >= 0))


def read_table(path: str | Path) -> list[dict[str, Any]]:
    """The rows of a CSV, TSV or JSON-lines file, as they are.

    Raises
    ------
    DataError
        There is no such file, or it is of another kind, not UTF-8, or broken.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise DataError(f"There is no file `{path}`.") from error
    except UnicodeDecodeError as error:
        raise DataError(f"`{path}` is not written in UTF-8. Save it as UTF-8.") from error
    if path.suffix.lower() in (".csv", ".tsv"):
        return list(csv.DictReader(io.StringIO(text, newline=""), delimiter=_delimiter(path)))
    if path.suffix.lower() in (".jsonl", ".json"):
        try:
            return [json.loads(line) for line in text.splitlines() if line.strip()]
        except json.JSONDecodeError as error:
            raise DataError(f"`{path}` is not JSON lines, one object a line ({error}).") from error
    raise DataError(f"`{path}` must end in `.csv`, `.tsv` or `.jsonl`.")


def write_table(path: str | Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows as the file's ending says.

    Raises
    ------
    DataError
        There is such a file already: nothing is overwritten.
    """
    path = Path(path)
    if path.exists():
        raise DataError(f"`{path}` is there already. Remove it, or give another `--output`.")
    with path.open("x", encoding="utf-8", newline="") as file:
        if path.suffix.lower() in (".csv", ".tsv"):
            writer = csv.DictWriter(file, list(rows[0]), delimiter=_delimiter(path), lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
        else:
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def _delimiter(path: Path) -> str:
    return "\t" if path.suffix.lower() == ".tsv" else ","
