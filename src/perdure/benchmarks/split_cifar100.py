"""Split CIFAR-100: small photographs, the classes dealt out to tasks."""

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
    """The hundred classes of CIFAR-100 in tasks of equal size: photographs of 32 x 32 pixels.

    A class has 500 training and 100 test images. The data set has no formal licence and is for research use.

    Parameters
    ----------
    folder
        A folder with one file `cifar100*.parquet`, with the columns `image` (encoded), `label` and `split`,
        and `cifar100_classes.json`, the list of the classes. Without it, `uoft-cs/cifar100` comes from the
        Hugging Face hub; that way was written after the data set's card and has not been run against the hub.
    tasks
        A divisor of the number of classes.
    order_seed
        Shuffles the classes, by the legacy generator of NumPy: with 1993 they come as in PyCIL and PILOT. By
        default they come in the order of their names, as in InfLoRA.
    train, test
        About so many images a task, with all classes alike; by default all.
    validation
        About so many training images a task, at most a fifth of them, become its validation split; by
        default a tenth, at most 500.
    seed
        Of the choice of images.
    scenario
        What is known at test time.

    Raises
    ------
    DataError
        The folder lacks a file or column, the hub cannot be reached, the number of tasks does not divide that
        of the classes, or a class has a single training image.

    References
    ----------
    Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009; Rebuffi et al. (iCaRL),
    arXiv 1611.07725; Liang & Li (InfLoRA), arXiv 2404.00228.
    """
    classes, data = _from_folder(Path(folder)) if folder else _from_hub()
    sizes: dict[Split, int | None] = {"train": train, "validation": validation, "test": test}
    found = class_tasks(classes, data, tasks=tasks, order_seed=order_seed, sizes=sizes, seed=seed)
    return TaskStream("split_cifar100", found, scenario)


def _from_folder(folder: Path) -> tuple[list[str], dict[Split, Dataset]]:
    paths = sorted(folder.glob("cifar100*.parquet"))
    if len(paths) != 1:
        raise DataError(
            f"`{folder}` must hold one file `cifar100*.parquet`, it holds {len(paths)}."
        )
    try:
        classes = json.loads((folder / "cifar100_classes.json").read_text(encoding="utf-8"))
        table = pq.read_table(paths[0])
    except (OSError, ValueError) as error:
        raise DataError(
            f"`{folder}` must hold `{paths[0].name}` and `cifar100_classes.json`: {error}."
        ) from error
    parts = by_split(Dataset(table), ["image", "label"], str(paths[0]))
    return classes, {split: part.cast_column("image", Image()) for split, part in parts.items()}


def _from_hub() -> tuple[list[str], dict[Split, Dataset]]:
    found = from_hub("uoft-cs/cifar100")
    ours = {"img": "image", "fine_label": "label"}
    splits: tuple[Split, ...] = ("train", "test")
    data: dict[Split, Dataset] = {
        split: found[split].select_columns(list(ours)).rename_columns(ours) for split in splits
    }
    return found["train"].features["fine_label"].names, data
