"""Folders with the data of `standard_cl`: in perdure's own form, or as O-LoRA publishes it.

Own form: `manifest.json` with the `labels` of each task, and a table `<task>.parquet`
with the columns `text`, `label` and `split`.

O-LoRA's form: `CL_Benchmark/<kind>/<data set>/` with `labels.json`, `train.json` and
`test.json`, such as `TC/agnews/`. Its `dev.json` is not read: it is the same as `test.json`.
"""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import NamedTuple

import pyarrow.parquet as pq
from datasets import Dataset

from perdure.benchmarks.parts.json_files import read_list, read_object
from perdure.benchmarks.parts.text_prompts import DATA_SETS, QUESTIONS
from perdure.data.splits import by_split
from perdure.data.task import Split
from perdure.errors import DataError

MANIFEST = "manifest.json"
NO_LABEL = "-"
"""The label of MNLI's pairs on which the annotators did not agree."""


class LabelledTexts(NamedTuple):
    """The names of a task's classes, and its texts and labels by split."""

    classes: tuple[str, ...]
    splits: dict[Split, Dataset]


def tasks_in(folder: Path) -> Collection[str]:
    """Return the names of the tasks in a folder.

    Raises
    ------
    DataError
        The folder is in neither of the two forms.
    """
    if (folder / MANIFEST).is_file():
        return read_object(folder / MANIFEST)
    names = [name for name in QUESTIONS if _published(folder, name).is_dir()]
    if not names:
        raise DataError(
            f"`{folder}` must hold `{MANIFEST}` with the `labels` of each task, or the folders of "
            "O-LoRA's `CL_Benchmark`, such as `TC/agnews`."
        )
    return names


def read_texts(folder: Path, name: str) -> LabelledTexts:
    """Return the classes and examples of one of the tasks in a folder.

    Raises
    ------
    DataError
        A file is missing or damaged, or lacks a column or label.
    """
    if (folder / MANIFEST).is_file():
        return _from_table(folder, name)
    return _from_published(_published(folder, name))


# -- perdure's own form


def _from_table(folder: Path, name: str) -> LabelledTexts:
    path = folder / f"{name}.parquet"
    manifest = read_object(folder / MANIFEST)
    try:
        classes = tuple(manifest[name]["labels"])
        table = pq.read_table(path)
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"`{folder}` must hold `{path.name}`, and `{MANIFEST}` with its `labels`: {error}."
        ) from error
    return LabelledTexts(classes, by_split(Dataset(table), ["text", "label"], str(path)))


# -- O-LoRA's form


def _published(folder: Path, name: str) -> Path:
    """Return the folder of a task. O-LoRA's prompts name the same kinds and data sets."""
    return folder / QUESTIONS[name].kind / DATA_SETS.get(name, name)


def _from_published(folder: Path) -> LabelledTexts:
    labels = folder / "labels.json"
    classes = read_list(labels)
    if not all(isinstance(name, str) for name in classes):
        raise DataError(f"`{labels}` must be a list of texts, got {classes!r}.")
    index = {name: number for number, name in enumerate(classes)}
    splits: dict[Split, Dataset] = {}
    for split in ("train", "test"):
        splits[split] = _rows(folder / f"{split}.json", index)
    return LabelledTexts(tuple(classes), splits)


def _rows(path: Path, index: Mapping[str, int]) -> Dataset:
    """Return the examples in a file, with the numbers of their labels."""
    texts: list[str] = []
    labels: list[int] = []
    for number, row in enumerate(read_list(path), start=1):
        text = row.get("sentence") if isinstance(row, dict) else None
        label = row.get("label") if isinstance(row, dict) else None
        if label == NO_LABEL:
            continue
        if not isinstance(text, str) or not isinstance(label, str) or label not in index:
            raise DataError(
                f"`{path}`, example {number}: it needs a text as `sentence` and one of "
                f"{list(index)} as `label`, got {text!r:.80} and {label!r}."
            )
        texts.append(text)
        labels.append(index[label])
    if not texts:
        raise DataError(f"`{path}` has no examples.")
    return Dataset.from_dict({"text": texts, "label": labels})
