"""Split CIFAR-100: small photographs, with the classes divided among tasks."""

import json
from pathlib import Path

import pyarrow.parquet as pq
from datasets import Dataset, Image

from perdure.data.splits import by_split, class_tasks
from perdure.data.table import from_hub
from perdure.data.task import Scenario, Split, TaskStream
from perdure.errors import DataError


def split_cifar100(
    *,
    folder: str | None = None,
    tasks: int = 10,
    order_seed: int | None = None,
    train: int | None = None,
    validation: int | None = None,
    test: int | None = None,
    seed: int = 0,
    scenario: Scenario = "class",
) -> TaskStream:
    """The hundred classes of CIFAR-100 (photographs of 32 x 32 pixels) in tasks of equal size.

    A class has 500 training and 100 test images. The data set has no formal licence and
    is for research use.

    Parameters
    ----------
    folder
        A folder with one file `cifar100*.parquet`, with the columns `image` (encoded),
        `label` and `split`, and `cifar100_classes.json`, the list of the classes. If it
        is not given, `uoft-cs/cifar100` is loaded from the Hugging Face hub. That code
        follows the data set's card and has not been run against the hub.
    tasks
        The number of tasks, a divisor of the number of classes.
    order_seed
        Seed for the order of the classes, for NumPy's legacy generator; 1993 gives the
        order of PyCIL and PILOT. By default, the classes are ordered by name, as in
        InfLoRA.
    train, test
        The approximate number of images per task, the same for all classes; by default all.
    validation
        The approximate number of training images per task that become its validation
        split, at most a fifth; by default a tenth, at most 500.
    seed
        Seed for the choice of images.
    scenario
        The scenario: what is known about an input at test time.

    Raises
    ------
    DataError
        The folder lacks a file or column, the hub cannot be reached, the number of tasks
        does not divide the number of classes, or a class has only one training image.

    References
    ----------
    Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009; Rebuffi et al.
    (iCaRL), arXiv 1611.07725; Liang & Li (InfLoRA), arXiv 2404.00228.
    """
    classes, data = _from_folder(Path(folder)) if folder else _from_hub()
    dealt = class_tasks(
        classes,
        data,
        tasks=tasks,
        order_seed=order_seed,
        sizes={
            "train": train,
            "validation": validation,
            "test": test,
        },
        seed=seed,
    )
    return TaskStream("split_cifar100", dealt, scenario)


def _from_folder(folder: Path) -> tuple[list[str], dict[Split, Dataset]]:
    # The file's name may go on with a version or a date.
    paths = sorted(folder.glob("cifar100*.parquet"))
    if len(paths) != 1:
        raise DataError(
            f"`{folder}` must hold one file `cifar100*.parquet`, it holds {len(paths)}."
        )
    path = paths[0]
    try:
        classes = json.loads((folder / "cifar100_classes.json").read_text(encoding="utf-8"))
        table = pq.read_table(path)
    except (OSError, ValueError) as error:
        raise DataError(
            f"`{folder}` must hold `{path.name}` and `cifar100_classes.json`: {error}."
        ) from error
    splits = by_split(Dataset(table), ["image", "label"], str(path))
    # Arrow knows structs of bytes and a path; that these are images has to be said.
    for split, rows in splits.items():
        splits[split] = rows.cast_column("image", Image())
    return classes, splits


def _from_hub() -> tuple[list[str], dict[Split, Dataset]]:
    data = from_hub("uoft-cs/cifar100")
    # The coarse labels, twenty superclasses, are left out.
    columns = {
        "img": "image",
        "fine_label": "label",
    }
    classes = data["train"].features["fine_label"].names
    splits: dict[Split, Dataset] = {}
    for split in ("train", "test"):
        rows = data[split].select_columns(list(columns))
        splits[split] = rows.rename_columns(columns)
    return classes, splits
