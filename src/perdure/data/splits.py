"""Splits: cut examples into parts, take some of them, choose classes. Every draw has a seed."""

from collections.abc import Mapping, Sequence

import numpy as np
from datasets import Dataset

from perdure.data.task import Split, Task
from perdure.errors import DataError

SPLIT_NAMES: dict[Split, tuple[str, ...]] = {
    "train": ("train",),
    "validation": ("validation", "val", "valid", "dev"),
    "test": ("test",),
}

# Where there is no validation split, one is cut off the training examples. By default it is a
# tenth of them, but bounded, because it is measured again and again: to keep the best weights,
# to choose a scale.
MAX_DEFAULT_VALIDATION = 500


def split_rows(labels: Sequence[int], *, shares: Sequence[float], seed: int) -> list[np.ndarray]:
    """Split row numbers so that every part has the given share of each class, and at least one row
    of it.

    Returns one array of row numbers per share, and a last one with the rest.

    Examples
    --------
    >>> [rows.tolist() for rows in split_rows([0, 0, 0, 1, 1, 1], shares=[0.3], seed=0)]
    [[2, 3], [0, 1, 4, 5]]
    """
    values = np.asarray(labels)
    # A single draw for all classes. Changing it would change the splits of all published numbers.
    random = np.random.default_rng(seed)
    shuffled = random.permutation(len(values))
    parts: list[list[int]] = [[] for _ in shares]
    rest: list[int] = []
    for value in np.unique(values):
        is_of_class = values[shuffled] == value
        rows = shuffled[is_of_class]
        start = 0
        for numbers, share in zip(parts, shares, strict=True):
            count = max(1, round(share * len(rows)))
            stop = start + count
            numbers.extend(rows[start:stop])
            start = stop
        rest.extend(rows[start:])
    parts.append(rest)
    arrays = []
    for numbers in parts:
        # `int`, because an empty list would become an array of floats, which cannot index rows.
        array = np.array(numbers, dtype=int)
        # Sorted, so that each part keeps the order of the table.
        arrays.append(np.sort(array))
    return arrays


def divided(data: Dataset, size: int, seed: int) -> tuple[Dataset, Dataset]:
    """Return about `size` examples, with the shares of the classes kept, and the rest.

    If the answers are free text there are no classes: the examples are drawn from all rows.

    Examples
    --------
    >>> rows = {"text": list("abcdef"), "label": [0, 0, 0, 0, 1, 1]}
    >>> some, rest = divided(Dataset.from_dict(rows), 3, seed=0)
    >>> some["label"][:], len(rest)
    ([0, 0, 1], 3)
    """
    if size >= len(data):
        return data, data.select([])
    labels = _classes(data)
    share = size / len(data)
    chosen, rest = split_rows(labels, shares=[share], seed=seed)
    return data.select(chosen), data.select(rest)


def _classes(data: Dataset) -> list[int]:
    """Return the class of each example; the same for all if the answer is free text."""
    return data["label"][:] if "label" in data.column_names else [0] * len(data)


def bounded(
    data: Mapping[Split, Dataset], sizes: Mapping[Split, int | None], seed: int
) -> dict[Split, Dataset]:
    """Take about `sizes[split]` examples of each split, with the shares of the classes kept.

    `None` takes all. If `data` has no validation split, `sizes["validation"]` training examples
    become one, at most a fifth of them; by default a tenth, at most 500.

    Examples
    --------
    >>> rows = Dataset.from_dict({"text": list("abcdefgh"), "label": [0, 1] * 4})
    >>> sizes = {"train": 4, "validation": None, "test": None}
    >>> splits = bounded({"train": rows, "test": rows}, sizes, seed=0)
    >>> {split: len(rows) for split, rows in splits.items()}
    {'train': 4, 'test': 8, 'validation': 2}
    """
    for split, size in sizes.items():
        if size is not None and size < 1:
            raise DataError(f"`{split}` must be at least 1, or left out to take all; got {size}.")
    splits = dict(data)
    if "validation" not in splits:
        # Before training is cut to its size: the validation split takes nothing from that size.
        size = sizes["validation"]
        validation, train = _with_validation(splits["train"], size, seed)
        splits["validation"] = validation
        splits["train"] = train
    for split, size in sizes.items():
        # A validation split that was just made has its size already.
        if size and split in data:
            chosen, _ = divided(splits[split], size, seed)
            splits[split] = chosen
    return splits


def _with_validation(data: Dataset, size: int | None, seed: int) -> tuple[Dataset, Dataset]:
    """Cut training examples into a validation split and the rest."""
    if size is None:
        size = min(len(data) // 10, MAX_DEFAULT_VALIDATION)
    # At most a fifth, also of those asked for, and at least one: no split of a task may be empty.
    size = min(size, len(data) // 5)
    size = max(1, size)
    validation, train = divided(data, size, seed)
    # Each class gives at least one example to validation: it may have been the only one.
    classes = set(_classes(data))
    classes_left = set(_classes(train))
    if len(classes_left) < len(classes):
        raise DataError(
            "A class has a single training example, which leaves none for validation. "
            "Give at least two."
        )
    return validation, train


def by_split(data: Dataset, columns: Sequence[str], source: str) -> dict[Split, Dataset]:
    """Sort the rows of a table by its column `split`, with `columns` alone; drop other splits.

    Examples
    --------
    >>> rows = {"text": ["a", "b", "c"], "label": [0, 1, 0], "split": ["train", "test", "other"]}
    >>> splits = by_split(Dataset.from_dict(rows), ["text", "label"], "my.parquet")
    >>> {split: rows["text"][:] for split, rows in splits.items()}
    {'train': ['a'], 'test': ['b']}
    """
    for column in ("split", *columns):
        if column not in data.column_names:
            raise DataError(
                f"`{source}` has no column `{column}`. Its columns: {data.column_names}."
            )
    names = np.array(data["split"][:])
    inputs = data.select_columns(list(columns))
    splits: dict[Split, Dataset] = {}
    for split, keys in SPLIT_NAMES.items():
        for key in keys:
            if key in names:
                is_of_split = names == key
                rows = np.flatnonzero(is_of_split)
                splits[split] = inputs.select(rows)
    for split in ("train", "test"):
        if split not in splits:
            present = sorted(set(names.tolist()))
            raise DataError(f"`{source}` has no row of the split `{split}`. Its splits: {present}.")
    return splits


def of_classes(data: Dataset, numbers: Sequence[int]) -> Dataset:
    """Return the rows of some classes, with labels from 0 in the order of `numbers`.

    Examples
    --------
    >>> rows = Dataset.from_dict({"text": list("abcd"), "label": [0, 1, 2, 1]})
    >>> of_classes(rows, [2, 1]).to_dict()
    {'text': ['b', 'c', 'd'], 'label': [1, 0, 1]}
    """
    labels = np.array(data["label"][:])
    largest = max(labels.max(initial=0), *numbers)
    # A table from the old label to the new one, -1 for other classes. Its last entry is for the
    # label -1, by which data sets say that a row has no class: NumPy counts it from the end.
    table = np.full(largest + 2, -1)
    table[list(numbers)] = np.arange(len(numbers))
    new_labels = table[labels]
    rows = data.remove_columns("label")
    rows = rows.add_column("label", new_labels)
    chosen = np.flatnonzero(new_labels >= 0)
    return rows.select(chosen)


def class_tasks(
    classes: Sequence[str],
    data: Mapping[Split, Dataset],
    *,
    tasks: int,
    order_seed: int | None,
    sizes: Mapping[Split, int | None],
    seed: int,
) -> tuple[Task, ...]:
    """Deal the classes of a data set out to tasks with the same number of classes each.

    A task has about `sizes[split]` examples of each split (see `bounded`). With `order_seed` the
    classes are shuffled first, by the legacy generator of NumPy: it produces the orders used in the
    literature.

    Raises
    ------
    DataError
        `tasks` does not divide the number of classes, or a class has a single training example.
    """
    if tasks < 1 or len(classes) % tasks or tasks == len(classes):
        raise DataError(
            f"`tasks` must divide the {len(classes)} classes into tasks of at least two, "
            f"got {tasks}."
        )
    order = np.arange(len(classes))
    if order_seed is not None:
        # Not `default_rng`: its shuffles differ, and the results of papers could not be compared.
        random = np.random.RandomState(order_seed)
        order = random.permutation(len(classes))

    dealt = []
    for number, group in enumerate(np.split(order, tasks), start=1):
        indices: list[int] = group.tolist()
        names = tuple(classes[index] for index in indices)
        splits: dict[Split, Dataset] = {}
        for split, rows in data.items():
            splits[split] = of_classes(rows, indices)
        chosen = bounded(splits, sizes, seed)
        task = Task(f"part{number:02}", names, **chosen)
        dealt.append(task)
    return tuple(dealt)
