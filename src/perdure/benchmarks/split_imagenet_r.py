"""Split ImageNet-R: art, cartoons and other renditions, with the classes divided among tasks."""

from datasets import Dataset, concatenate_datasets

from perdure.data.splits import class_tasks, divided
from perdure.data.table import from_hub, read_tasks
from perdure.data.task import Scenario, Split, TaskStream

TEST = 0.2
"""The share of the hub's images used for testing; `read_tasks` takes the same share."""


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
    """The 200 classes of ImageNet-R (30,000 images) in tasks of equal size.

    There are no official splits: a fifth of each class, drawn with `seed`, is used for
    testing. (Several such splits, of 24,000 and 6,000 images, are in use in the
    literature.)

    The code has the MIT licence; the images belong to many different owners.

    Parameters
    ----------
    folder
        A folder with one subfolder of images per class, as in the data set's archive. If
        it is not given, `axiong/imagenet-r` is loaded from the Hugging Face hub. That
        code follows the data set's card and has not been run against the hub.
    tasks
        The number of tasks, a divisor of the number of classes.
    order_seed
        Seed for the order of the classes, for NumPy's legacy generator; by default, they
        are ordered by WordNet id.
    train, test
        The approximate number of images per task; the class proportions are preserved. By
        default all.
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
        The folder does not exist, the hub cannot be reached, or the number of tasks does
        not divide the number of classes.

    References
    ----------
    Hendrycks et al., The Many Faces of Robustness, arXiv 2006.16241; Wang et al. (DualPrompt),
    arXiv 2204.04799.
    """
    classes, data = _from_folder(folder, seed) if folder else _from_hub(seed)
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
    return TaskStream("split_imagenet_r", dealt, scenario)


def _from_folder(folder: str, seed: int) -> tuple[tuple[str, ...], dict[Split, Dataset]]:
    # As one task, for which a fifth is set apart for testing and a tenth for validation.
    # The latter is put back: each task cuts its own, of the size that was asked for.
    (task,) = read_tasks(folder, name="imagenet-r", image="image", seed=seed)
    train = concatenate_datasets([task.train, task.validation])
    splits: dict[Split, Dataset] = {
        "train": train,
        "test": task.test,
    }
    return task.classes, splits


def _from_hub(seed: int) -> tuple[tuple[str, ...], dict[Split, Dataset]]:
    # The card has all images in a split that it calls `test`.
    data = from_hub("axiong/imagenet-r")["test"]
    wordnet_ids = data["wnid"][:]
    class_names = data["class_name"][:]
    # A name for each id; in the order of the ids, as the folders of the archive are.
    pairs = zip(wordnet_ids, class_names, strict=True)
    names = dict(sorted(pairs))
    index = {wordnet_id: i for i, wordnet_id in enumerate(names)}
    labels = [index[wordnet_id] for wordnet_id in wordnet_ids]

    images = data.select_columns(["image"])
    images = images.add_column("label", labels)
    test_size = round(TEST * len(images))
    test, train = divided(images, test_size, seed)
    splits: dict[Split, Dataset] = {
        "train": train,
        "test": test,
    }
    return tuple(names.values()), splits
