"""Split ImageNet-R: art, cartoons, toys and other renditions of 200 ImageNet classes, dealt out to tasks."""

from datasets import Dataset, concatenate_datasets

from perdure.data.splits import class_tasks, divided
from perdure.data.table import from_hub, read_tasks
from perdure.data.task import Scenario, Split, TaskStream


def split_imagenet_r(
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
    """The 200 classes of ImageNet-R (30,000 images) in tasks of equal size. Code MIT; the images have many owners.

    There are no official splits: a fifth of each class, drawn with `seed`, is for testing. (The literature has used
    several such draws of 24,000 and 6,000 images.)

    Parameters
    ----------
    folder
        A folder of images in one folder per class, as the data set's archive has it. Without it, `axiong/imagenet-r`
        comes from the Hugging Face hub; that way was written after the data set's card and has not been run against
        the hub.
    tasks
        A divisor of the number of classes.
    order_seed
        Shuffles the classes, by the legacy generator of NumPy; by default they come in the order of their WordNet ids.
    train, test
        About so many images a task, with the shares of the classes kept; by default all.
    validation
        About so many training images a task, at most a fifth of them, become its validation split; by default a tenth,
        at most 500.
    seed
        Of the choice of images.
    scenario
        What is known at test time.

    Raises
    ------
    DataError
        There is no such folder, the hub cannot be reached, or the number of tasks does not divide that of the classes.

    References
    ----------
    Hendrycks et al., The Many Faces of Robustness, arXiv 2006.16241; Wang et al. (DualPrompt), arXiv 2204.04799.
    """
    classes, data = _from_folder(folder, seed) if folder else _from_hub(seed)
    sizes: dict[Split, int | None] = {"train": train, "validation": validation, "test": test}
    found = class_tasks(classes, data, tasks=tasks, order_seed=order_seed, sizes=sizes, seed=seed)
    return TaskStream("split_imagenet_r", found, scenario)


def _from_folder(folder: str, seed: int) -> tuple[tuple[str, ...], dict[Split, Dataset]]:
    (whole,) = read_tasks(
        folder, name="imagenet-r", image="image", seed=seed
    )  # sets a fifth apart for testing
    return whole.classes, {
        "train": concatenate_datasets([whole.train, whole.validation]),
        "test": whole.test,
    }


def _from_hub(seed: int) -> tuple[tuple[str, ...], dict[Split, Dataset]]:
    found = from_hub("axiong/imagenet-r")["test"]
    names = dict(sorted(zip(found["wnid"][:], found["class_name"][:], strict=True)))
    place = {wnid: i for i, wnid in enumerate(names)}
    everything = found.select_columns(["image"]).add_column(
        "label", [place[wnid] for wnid in found["wnid"][:]]
    )
    held_out, rest = divided(everything, round(0.2 * len(everything)), seed)
    return tuple(names.values()), {"train": rest, "test": held_out}
