"""Tasks from your own data: tables, image folders, and data sets on the hub."""

import contextlib
import errno
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import cast

import datasets
import datasets.config
import numpy as np
from datasets import Dataset

from perdure.data import network
from perdure.data.class_names import complaint, in_order, shown
from perdure.data.examples import Columns, declared_classes, from_dataset, from_tables
from perdure.data.formats import Request, reading_of
from perdure.data.image_folder import has_metadata, read_image_folder
from perdure.data.images import image_column
from perdure.data.prompts import UNLISTED, with_choices
from perdure.data.rows import ENDINGS, Table
from perdure.data.splits import SPLIT_NAMES, divided
from perdure.data.task import SPLITS, Split, Task
from perdure.errors import DataError, NotHere

SHARES: dict[Split, float] = {"test": 0.2, "validation": 0.1}
"""The share of the training examples used for each missing split, in order of creation."""


def read_tasks(
    data: str | Mapping[str, str],
    *,
    name: str | None = None,
    text: str | list[str] | None = None,
    image: str | None = None,
    prompt: str | None = None,
    answer: str | None = None,
    label: str | None = None,
    task: str | None = None,
    score: str = "accuracy",
    config: str | None = None,
    encoding: str = "utf-8",
    delimiter: str | None = None,
    seed: int = 0,
) -> list[Task]:
    """Read data as a single task, or as one task for each value in the column `task`.

    A task has either classes or free-text answers. If none of `text`, `image`, `prompt`,
    `answer` and `label` is given, the column names decide: `text` or `image` with
    `label`; `messages`, conversations whose last turn is the answer; `prompt` and
    `completion`; or the Alpaca columns `instruction`, `input` (optional) and `output`.

    Parameters
    ----------
    data
        A CSV, TSV, JSON(-lines) or Parquet file, a folder of such files with names that
        start with their split, a folder with one subfolder of images per class, a hub id,
        or a mapping from `train`, `validation` and `test` to files.
    name
        The name of the task; by default, the name of the file without its extension.
    text, image
        The column that contains the input; by default, `text` or `image`. Two columns for
        `text` are read as pairs, such as a premise and a hypothesis, in this order.
    prompt
        The input of a language model: a column, or a template with any columns, such as
        `"Sentence 1: {premise}\\nSentence 2: {hypothesis}\\nAnswer:"`. If the answer is a
        class, `{choices}` is replaced by a list of the classes. `{{` and `}}` represent
        literal braces.
    answer
        The right answer as free text: a column or a template. A cell with a list (in JSON
        and Parquet) contains several right answers, of which the first is used for
        training.
    label
        The column that contains the class; by default, `label`.
    task
        The column that names the task of each row.
    score
        The metric for the answers: the name of a file in `perdure/evaluation/scores`,
        such as `rouge_l`.
    config
        The configuration of a hub data set.
    encoding
        The encoding of text files.
    delimiter
        The separator between the cells of a CSV file; by default, it is detected from the
        header (see `perdure.data.rows.Table.open`).
    seed
        The seed for missing splits. A fifth of the examples is used for a missing test
        split, then a tenth of the rest for a missing validation split. Both are
        stratified by class if there are classes.

    Raises
    ------
    DataError
        A file or column is missing, text is not in the given encoding, a cell is empty or
        is not a valid text, class or conversation, a template has an unknown placeholder,
        the labels look like texts or quantities, a class has too few examples, or a class
        in the validation or test split does not occur in training.

    Examples
    --------
    >>> path = Path(getfixture("tmp_path")) / "sums.csv"
    >>> _ = path.write_text("a,b,sum\\n1,1,2\\n1,2,3\\n2,2,4\\n")
    >>> (task,) = read_tasks(str(path), prompt="{a} + {b} =", answer="sum", score="exact_match")
    >>> task.classes, sorted(task.test.features), len(task.train)
    ((), ['row', 'target', 'text'], 1)
    """
    if isinstance(data, Mapping) and not (name or task):
        raise DataError("Give the task a `name`: `data` names several files.")
    files = {"train": data} if isinstance(data, str) else dict(data)
    _check_files(files)
    texts = [text] if isinstance(text, str) else text or []
    request = Request(texts, image, prompt, answer, label)
    tables = _tables(files, encoding, delimiter)
    if tables:
        splits, classes = _read_tables(tables, request, task)
    else:
        splits, classes = _read_datasets(files, config, request, task)

    if "image" in splits["train"].column_names:
        for split, rows in splits.items():
            splits[split] = image_column(rows, "image", _where(files, split))
    if task:
        splits_of_tasks = _by_task(splits)
    else:
        title = name or Path(files["train"]).stem
        splits_of_tasks = {title: splits}
    tasks = []
    for title, task_splits in splits_of_tasks.items():
        if "target" in splits["train"].column_names:
            tasks.append(_free_task(title, task_splits, score, seed))
        else:
            task_read = _task(title, task_splits, classes, request.label_column, seed)
            tasks.append(replace(task_read, score=score))
    return tasks


def _check_files(files: Mapping[str, str]) -> None:
    if "train" not in files or not set(files) <= set(SPLITS):
        raise DataError(
            f"`data` names the splits {list(files)}; it needs `train`, and can have {list(SPLITS)}."
        )
    # An empty path would mean the current folder.
    if "" in files.values():
        raise DataError("`data` is empty. Give a file, a folder of images, or a hub id.")


def _columns(names: Sequence[str], source: str, request: Request, task: str | None) -> Columns:
    """Return the columns to read; the input column defaults to `text` or `image`."""
    label = request.label_column
    reading = reading_of(names, source, request)
    if reading:
        return Columns.of_prompts(reading, label, task)
    texts = list(request.text)
    # If a table has both `text` and `image`, its texts are read.
    if not texts and not request.image:
        if "text" in names:
            texts = ["text"]
        elif "image" not in names:
            raise DataError(
                f"{source} has the columns {list(names)}: say which holds the input, with "
                "`text=…`, `image=…` or `prompt=…`."
            )
    if texts:
        return Columns("text", tuple(texts), label, task)
    return Columns("image", (request.image or "image",), label, task)


# -- tables in files


def _tables(
    files: Mapping[str, str], encoding: str, delimiter: str | None
) -> dict[Split, list[Table]] | None:
    """Open the tables of each split; return None if the data is not in table files."""
    paths: dict[Split, list[Path]] = {}
    for split in SPLITS:
        if split in files:
            paths[split] = [Path(files[split])]
    first = paths["train"][0]
    if os.path.isdir(first):  # unlike `Path.is_dir`, accepts any name
        if len(files) > 1 or not _has_tables(first):
            return None
        paths = _paths_by_split(first)
    elif first.suffix.lower() not in ENDINGS and not os.path.exists(first):
        return None  # the name of a data set on the hub

    tables: dict[Split, list[Table]] = {}
    for split, split_paths in paths.items():
        tables[split] = [
            Table.open(
                path,
                encoding=encoding,
                delimiter=delimiter,
            )
            for path in split_paths
        ]
    return tables


def _has_tables(folder: Path) -> bool:
    """Return whether a folder contains tables other than the metadata table of its images."""
    return any(path.stem != "metadata" for path in _table_paths(folder))


def _table_paths(folder: Path) -> list[Path]:
    """Return the table files in a folder or, if there are none, in its subfolder `data`.

    This is the subfolder in which `datasets` stores tables.
    """
    for directory in (folder, folder / "data"):
        paths = sorted(directory.iterdir()) if directory.is_dir() else []
        tables = []
        for path in paths:
            is_hidden = path.name.startswith(".")
            if not is_hidden and path.suffix.lower() in ENDINGS and path.is_file():
                tables.append(path)
        if tables:
            return tables
    return []


def _paths_by_split(folder: Path) -> dict[Split, list[Path]]:
    """Group the table files in a folder by split, according to the first word of their names."""
    tables = _table_paths(folder)
    if len(tables) == 1:
        return {"train": tables}
    paths: dict[Split, list[Path]] = {}
    for path in tables:
        # Large data sets come in pieces, such as `train-00000-of-00002.parquet`.
        word = re.split("[^a-z]", path.stem.lower())[0]
        for split, words in SPLIT_NAMES.items():
            if word in words:
                paths.setdefault(split, []).append(path)
    if "train" not in paths:
        names = [path.name for path in tables]
        raise DataError(
            f"`{folder}` contains the tables {names}. "
            "Give one of them, or rename them to `train…` and `test…`."
        )
    return paths


def _read_tables(
    tables: Mapping[Split, Sequence[Table]], request: Request, task: str | None
) -> tuple[dict[Split, Dataset], list[str] | None]:
    """Return the examples of each split, and the classes that the first table declares."""
    first = tables["train"][0]
    columns = _columns(first.columns, f"`{first.path}`", request, task)
    splits: dict[Split, Dataset] = {}
    for split, split_tables in tables.items():
        splits[split] = from_tables(split_tables, columns)
    if columns.label is None:
        return splits, None
    return splits, first.class_names.get(columns.label)


# -- image folders, and data sets that `datasets` reads


def _read_datasets(
    files: Mapping[str, str], config: str | None, request: Request, task: str | None
) -> tuple[dict[Split, Dataset], list[str] | None]:
    """Return the examples of an image folder or hub data set by split, and its declared classes."""
    source = files["train"]
    data = _load_images(files) if os.path.isdir(source) else from_hub(source, config)
    splits: dict[Split, Dataset] = {}
    for split, keys in SPLIT_NAMES.items():
        for key in keys:
            if key in data:
                splits[split] = data[key]
    if "train" not in splits:
        raise DataError(f"`{source}` has no split named `train`.")
    # The training split decides which columns are read; `from_dataset` rejects splits without them.
    columns = _columns(splits["train"].column_names, f"`{source}`", request, task)
    examples: dict[Split, Dataset] = {}
    for split, rows in splits.items():
        where = f"`{source}`, split `{split}`"
        examples[split] = from_dataset(rows, where, columns)
    if columns.label is None:
        return examples, None
    return examples, declared_classes(splits["train"], columns.label)


def _load_images(files: Mapping[str, str]) -> Mapping[str, Dataset]:
    """Load the splits of an image folder."""
    folder = files["train"]
    if len(files) > 1:
        raise DataError(
            f"`data` names the folder `{folder}` and other paths. "
            "Give one folder that contains a folder for each split."
        )
    if not has_metadata(folder):
        return read_image_folder(folder)
    return _load(folder, lambda: datasets.load_dataset("imagefolder", data_dir=folder))


def _where(files: Mapping[str, str], split: Split) -> str:
    """Return a name for the data of a split, for use in error messages."""
    file = files.get(split, files["train"])
    if os.path.exists(file):
        return Path(file).name
    # For a data set on the hub, the id alone would not distinguish the splits.
    return f"{file}, {split}"


def from_hub(name: str, config: str | None = None) -> Mapping[str, Dataset]:
    """Load all splits of a data set on the hub.

    Raises
    ------
    DataError
        The data set does not exist, cannot be reached, or cannot be read.
    NotHere
        It is not in the cache, and downloads are forbidden.
    """
    try:
        if config:
            return _load(name, lambda: datasets.load_dataset(name, config))
        return _load(name, lambda: datasets.load_dataset(name))
    except DataError as error:
        if network.is_closed():
            raise NotHere(
                f"The data set `{name}` is not on this machine, and a dry run downloads nothing."
            ) from error
        raise


def _load(source: str, load: Callable[[], object]) -> Mapping[str, Dataset]:
    """Load a data set without console output; any failure becomes a one-sentence `DataError`."""
    with _quiet():
        try:
            return cast("Mapping[str, Dataset]", load())
        except Exception as error:  # datasets wraps whatever its readers raise
            # The cause has the reader's message, of which only the first line is useful here.
            message = str(error.__cause__ or error).strip()
            reason = message.splitlines()[0]
            if "corresponds to no data" in reason:
                reason = "it has no rows"
            if _cannot_be_written(error):
                reason += (
                    ". Set `HF_HOME` to a folder where you may write: "
                    "`datasets` stores its downloads there"
                )
            raise DataError(f"`{source}` could not be read: {reason}.") from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence `datasets` and its usage reports to the hub; restore all settings at the end.

    The settings are process-wide, and the caller may have chosen them deliberately.
    """
    verbosity = datasets.logging.get_verbosity()
    has_bars = datasets.is_progress_bar_enabled()
    counts = datasets.config.HF_UPDATE_DOWNLOAD_COUNTS
    # Otherwise, the hub is notified of every table that is read, even if it is a local file.
    datasets.config.HF_UPDATE_DOWNLOAD_COUNTS = False
    # `datasets` logs the errors that it raises; a user should see them only once.
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        datasets.config.HF_UPDATE_DOWNLOAD_COUNTS = counts
        datasets.logging.set_verbosity(verbosity)
        if has_bars:
            datasets.enable_progress_bars()


def _cannot_be_written(error: BaseException) -> bool:
    """Return whether loading failed because the cache of `datasets` cannot be written."""
    numbers = set()
    # `datasets` wraps errors: the system error is then the cause or the context.
    for reason in (error, error.__cause__, error.__context__):
        if isinstance(reason, OSError):
            numbers.add(reason.errno)
    denied = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR}
    return bool(numbers & denied)


# -- tasks


def _by_task(splits: Mapping[Split, Dataset]) -> dict[str, dict[Split, Dataset]]:
    """Group the examples by task; tasks are in order of first appearance in the training split."""
    names: dict[Split, np.ndarray] = {}
    for split, data in splits.items():
        names[split] = np.array(data["task"][:])
    titles = dict.fromkeys(names["train"].tolist())
    splits_of_tasks: dict[str, dict[Split, Dataset]] = {}
    for title in titles:
        # A split without rows of this task is empty here, which `Task` rejects with a message.
        splits_of_task: dict[Split, Dataset] = {}
        for split, data in splits.items():
            is_of_task = names[split] == title
            rows = np.flatnonzero(is_of_task)
            splits_of_task[split] = data.select(rows)
        splits_of_tasks[title] = splits_of_task
    return splits_of_tasks


def _task(
    title: str,
    splits: Mapping[Split, Dataset],
    declared: Sequence[str] | None,
    column: str,
    seed: int,
) -> Task:
    """Create a task with numbered classes, taking missing splits from its training examples.

    `declared` contains the class names, if the table declares them; `column` is the name
    of the label column, for error messages.
    """
    labels = splits["train"]["label"][:]
    present = set(labels)
    if declared:
        # The table may declare classes that occur only in other tasks.
        names = [name for name in declared if name in present]
    else:
        reason = complaint(labels, column)
        if reason:
            raise DataError(f"Task `{title}`: {reason[0].lower()}{reason[1:]}")
        names = in_order(present)

    numbered: dict[Split, Dataset] = {}
    for split, data in splits.items():
        numbered[split] = _numbered(title, split, _with_choices(data, names), names)
    for split, share in SHARES.items():
        if split not in numbered:
            _check_counts(title, numbered["train"], names, split)
            _cut(numbered, split, share, seed)
    return Task(title, tuple(names), **numbered)


def _free_task(title: str, splits: Mapping[Split, Dataset], score: str, seed: int) -> Task:
    """Create a task with free-text answers, taking missing splits from its training examples."""
    examples: dict[Split, Dataset] = {}
    for split, data in splits.items():
        names = [name for name in data.column_names if name != "task"]
        examples[split] = data.select_columns(names)
    for split, share in SHARES.items():
        if split not in examples:
            if len(examples["train"]) < 2:
                raise DataError(
                    f"Task `{title}` has too few examples to set some apart for `{split}`. Give "
                    f"at least three, or a separate `{split}` file."
                )
            _cut(examples, split, share, seed)
    return Task(title, (), **examples, score=score)


def _cut(splits: dict[Split, Dataset], split: Split, share: float, seed: int) -> None:
    """Create a missing split from a share of the training examples."""
    train = splits["train"]
    splits[split], splits["train"] = divided(train, round(share * len(train)), seed)


def _with_choices(data: Dataset, classes: Sequence[str]) -> Dataset:
    """Return the examples with `{choices}` in their prompts replaced by the classes."""
    if "text" not in data.column_names or not any(UNLISTED in text for text in data["text"]):
        return data
    prompts = [with_choices(prompt, classes) for prompt in data["text"]]
    return data.remove_columns("text").add_column("text", prompts)


def _numbered(title: str, split: str, data: Dataset, names: Sequence[str]) -> Dataset:
    """Return the examples with class numbers instead of class names as labels."""
    index = {name: i for i, name in enumerate(names)}
    numbers = []
    for row, name in zip(data["row"][:], data["label"][:], strict=True):
        if name not in index:
            raise DataError(
                f"Task `{title}`, split `{split}`, has the label `{shown(name)}`, which does not "
                f"occur in training (row {row}). Correct it, or add training examples with it."
            )
        numbers.append(index[name])
    rest = [name for name in data.column_names if name not in ("label", "task")]
    return data.select_columns(rest).add_column("label", numbers)


def _check_counts(title: str, train: Dataset, names: Sequence[str], split: Split) -> None:
    """Check that each class has at least two examples, for a missing split and for training."""
    counts = np.bincount(train["label"][:], minlength=len(names))
    if counts.min() < 2:
        rare = shown(names[int(counts.argmin())])
        raise DataError(
            f"Task `{title}`: class `{rare}` has too few examples to set some apart for "
            f"`{split}`. Give at least three of each class, or a separate `{split}` file."
        )
