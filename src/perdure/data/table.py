"""Your own data as tasks: tables, folders of images, and data sets from the hub."""

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
"""The shares of the training examples that become missing splits, in the order in which they are
cut off.
"""


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
    """Read one table as one task, or as several by the values of its column `task`.

    A task has classes, or is answered with free text. Without any of `text`, `image`, `prompt`,
    `answer` and `label` the names of the columns decide: `text` or `image` and `label`;
    `messages`, conversations whose last turn is the answer; `prompt` and `completion`; or Alpaca's
    `instruction`, `input` (which may be missing) and `output`.

    Parameters
    ----------
    data
        A CSV, TSV, JSON(-lines) or Parquet file, a folder of images in one folder per class,
        a hub id, or a mapping from `train`, `validation` and `test` to files.
    name
        The task's name; by default that of the file.
    text, image
        The column that holds the input; by default `text` or `image`. Two columns of `text`
        are read as pairs, such as a premise and a hypothesis, in this order.
    prompt
        The input of a language model: a column, or a template for any columns, such as `"Sentence
        1: {premise}\\nSentence 2: {hypothesis}\\nAnswer:"`. If the answer is a class, `{choices}`
        lists the classes. `{{` and `}}` stand for braces.
    answer
        The right answer, in free text: a column, or a template. A cell that is a list (in JSON and
        Parquet) contains several right answers; the first is trained on.
    label
        The column that holds the class; by default `label`.
    task
        The column that says which task a row belongs to.
    score
        The measure of the answers: the name of a file of `perdure/evaluation/scores`, such as
        `rouge_l`.
    config
        The configuration of a hub data set.
    encoding
        The encoding of text files.
    delimiter
        What separates the cells of a CSV file; by default its header decides (see
        `perdure.data.rows.Table.open`).
    seed
        Seed for missing splits. A fifth of the examples is set apart for a missing test split, then
        a tenth of the rest for a missing validation split, stratified by class if there are
        classes.

    Raises
    ------
    DataError
        A file or column is missing, a text is not in the encoding, a cell is empty or holds no
        text, class or conversation, a template has an unknown placeholder, the labels look like
        texts or quantities, a class has too few examples, or a class of validation or test does
        not occur in training.

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
    # An empty path would be the current folder.
    if "" in files.values():
        raise DataError("`data` is empty. Give a file, a folder of images, or a hub id.")


def _columns(names: Sequence[str], source: str, request: Request, task: str | None) -> Columns:
    """Return the columns to read; the input has its usual name if none is given."""
    label = request.label_column
    reading = reading_of(names, source, request)
    if reading:
        return Columns.of_prompts(reading, label, task)
    texts = list(request.text)
    # A table may have both `text` and `image`: then its texts are read.
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
    """Open the tables of each split; return `None` if the data is not a table in a file."""
    paths: dict[Split, list[Path]] = {}
    for split in SPLITS:
        if split in files:
            paths[split] = [Path(files[split])]
    first = paths["train"][0]
    if os.path.isdir(first):  # unlike `Path.is_dir` it takes any name
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
    """Return whether a folder holds tables, and not images with a table that describes them."""
    return any(path.stem != "metadata" for path in _table_paths(folder))


def _table_paths(folder: Path) -> list[Path]:
    """Return the tables in a folder, or in its subfolder `data`, where `datasets` puts them."""
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
    """Sort the tables in a folder into splits by the words that their names begin with."""
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
            f"`{folder}` holds the tables {names}. "
            "Name one of them, or call them `train…` and `test…`."
        )
    return paths


def _read_tables(
    tables: Mapping[Split, Sequence[Table]], request: Request, task: str | None
) -> tuple[dict[Split, Dataset], list[str] | None]:
    """Read the examples of each split, and the classes that the first table declares."""
    first = tables["train"][0]
    columns = _columns(first.columns, f"`{first.path}`", request, task)
    splits: dict[Split, Dataset] = {}
    for split, split_tables in tables.items():
        splits[split] = from_tables(split_tables, columns)
    if columns.label is None:
        return splits, None
    return splits, first.class_names.get(columns.label)


# -- folders of images, and what `datasets` reads


def _read_datasets(
    files: Mapping[str, str], config: str | None, request: Request, task: str | None
) -> tuple[dict[Split, Dataset], list[str] | None]:
    """Read the examples of each split of a folder of images, or of a data set on the hub."""
    source = files["train"]
    data = _load_images(files) if os.path.isdir(source) else from_hub(source, config)
    splits: dict[Split, Dataset] = {}
    for split, keys in SPLIT_NAMES.items():
        for key in keys:
            if key in data:
                splits[split] = data[key]
    if "train" not in splits:
        raise DataError(f"`{source}` has no split named `train`.")
    # Training decides which columns are read; `from_dataset` refuses a split that lacks one.
    columns = _columns(splits["train"].column_names, f"`{source}`", request, task)
    examples: dict[Split, Dataset] = {}
    for split, rows in splits.items():
        where = f"`{source}`, split `{split}`"
        examples[split] = from_dataset(rows, where, columns)
    if columns.label is None:
        return examples, None
    return examples, declared_classes(splits["train"], columns.label)


def _load_images(files: Mapping[str, str]) -> Mapping[str, Dataset]:
    """Read the splits of a folder of images."""
    folder = files["train"]
    if len(files) > 1:
        raise DataError(
            f"`data` names the folder `{folder}` and others. "
            "Give one folder, with a folder for each split in it."
        )
    if not has_metadata(folder):
        return read_image_folder(folder)
    return _load(folder, lambda: datasets.load_dataset("imagefolder", data_dir=folder))


def _where(files: Mapping[str, str], split: Split) -> str:
    """Return the name of a split's table for error messages."""
    file = files.get(split, files["train"])
    if os.path.exists(file):
        return Path(file).name
    # A data set on the hub: its id alone would not tell the splits apart.
    return f"{file}, {split}"


def from_hub(name: str, config: str | None = None) -> Mapping[str, Dataset]:
    """Return all splits of a data set on the hub.

    Raises
    ------
    DataError
        The data set does not exist, cannot be reached, or cannot be read.
    NotHere
        It is not in the cache, and nothing may be downloaded.
    """
    try:
        if config:
            return _load(name, lambda: datasets.load_dataset(name, config))
        return _load(name, lambda: datasets.load_dataset(name))
    except DataError as error:
        if network.is_closed():
            raise NotHere(
                f"The data set `{name}` is not on this machine, and nothing is downloaded now."
            ) from error
        raise


def _load(source: str, load: Callable[[], object]) -> Mapping[str, Dataset]:
    """Call `datasets.load_dataset` quietly; turn any failure into a one-sentence error."""
    with _quiet():
        try:
            return cast("Mapping[str, Dataset]", load())
        except Exception as error:  # datasets wraps whatever its readers raise
            # The cause has the reader's own words; the lines after the first are of no use here.
            message = str(error.__cause__ or error).strip()
            reason = message.splitlines()[0]
            if "corresponds to no data" in reason:
                reason = "it has no rows"
            if _cannot_be_written(error):
                reason += (
                    ". Set `HF_HOME` to a folder where you may write: "
                    "`datasets` keeps what it fetches there"
                )
            raise DataError(f"`{source}` could not be read: {reason}.") from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence `datasets`, and stop it from reporting to the hub what is read; put all back at the
    end.

    These settings are process-wide, and the caller may have chosen them deliberately.
    """
    verbosity = datasets.logging.get_verbosity()
    has_bars = datasets.is_progress_bar_enabled()
    counts = datasets.config.HF_UPDATE_DOWNLOAD_COUNTS
    # Otherwise the hub is told of each table that is read, of one's own too.
    datasets.config.HF_UPDATE_DOWNLOAD_COUNTS = False
    # Its errors are logged as well as raised; a user should see them once.
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
    """Return whether the cache of `datasets` failed: the home folder is missing or read-only."""
    numbers = set()
    # `datasets` wraps errors: the one of the system is then its cause or context.
    for reason in (error, error.__cause__, error.__context__):
        if isinstance(reason, OSError):
            numbers.add(reason.errno)
    denied = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR}
    return bool(numbers & denied)


# -- tasks


def _by_task(splits: Mapping[Split, Dataset]) -> dict[str, dict[Split, Dataset]]:
    """Divide the examples by task, in the order in which the training split names the tasks."""
    names: dict[Split, np.ndarray] = {}
    for split, data in splits.items():
        names[split] = np.array(data["task"][:])
    titles = dict.fromkeys(names["train"].tolist())
    splits_of_tasks: dict[str, dict[Split, Dataset]] = {}
    for title in titles:
        # A split without a row of the task is empty here, which `Task` refuses with a message.
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
    """Number the classes of a task, and cut the splits that are missing off its training split.

    `declared` are the class names, if the table declares them; `column` is what messages call the
    column of the labels.
    """
    labels = splits["train"]["label"][:]
    present = set(labels)
    if declared:
        # The table may declare classes that occur in other tasks only.
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
    """Make a task that is answered with free text, and cut the splits that are missing."""
    examples: dict[Split, Dataset] = {}
    for split, data in splits.items():
        names = [name for name in data.column_names if name != "task"]
        examples[split] = data.select_columns(names)
    for split, share in SHARES.items():
        if split not in examples:
            if len(examples["train"]) < 2:
                raise DataError(
                    f"Task `{title}` has too few examples to set some apart for `{split}`. Give "
                    f"at least three, or a `{split}` file of its own."
                )
            _cut(examples, split, share, seed)
    return Task(title, (), **examples, score=score)


def _cut(splits: dict[Split, Dataset], split: Split, share: float, seed: int) -> None:
    """Cut a missing split off the training examples."""
    train = splits["train"]
    splits[split], splits["train"] = divided(train, round(share * len(train)), seed)


def _with_choices(data: Dataset, classes: Sequence[str]) -> Dataset:
    """Return the examples with `{choices}` in their prompts replaced by the classes."""
    if "text" not in data.column_names or not any(UNLISTED in text for text in data["text"]):
        return data
    prompts = [with_choices(prompt, classes) for prompt in data["text"]]
    return data.remove_columns("text").add_column("text", prompts)


def _numbered(title: str, split: str, data: Dataset, names: Sequence[str]) -> Dataset:
    """Return the examples with the numbers of their classes in place of the names."""
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
    """Check that each class can give an example to a split, and keep another one."""
    counts = np.bincount(train["label"][:], minlength=len(names))
    if counts.min() < 2:
        rare = shown(names[int(counts.argmin())])
        raise DataError(
            f"Task `{title}`: class `{rare}` has too few examples to set some apart for "
            f"`{split}`. Give at least three of each class, or a `{split}` file of its own."
        )
