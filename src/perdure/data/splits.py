"""Splits: cut examples into parts, take some of them, choose classes. All draws state their seed."""

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


def split_rows(labels: Sequence[int], *, shares: Sequence[float], seed: int) -> list[np.ndarray]:
    """Split row numbers so that each class is in each part in the given shares, at least once.

    Returns one array of row numbers per share, and a last one with the rest.

    Examples
    --------
    >>> [part.tolist() for part in split_rows([0, 0, 0, 1, 1, 1], shares=[0.3], seed=0)]
    [[2, 3], [0, 1, 4, 5]]
    """
    values = np.asarray(labels)
    shuffled = np.random.default_rng(seed).permutation(len(values))
    parts: list[list[int]] = [[] for _ in range(len(shares) + 1)]
    for value in np.unique(values):
        rows = shuffled[values[shuffled] == value]
        start = 0
        for part, share in zip(parts, shares, strict=False):
            stop = start + max(1, round(share * len(rows)))
            part.extend(rows[start:stop])
            start = stop
        parts[-1].extend(rows[start:])
    return [np.sort(np.array(part, dtype=int)) for part in parts]


def divided(data: Dataset, size: int, seed: int) -> tuple[Dataset, Dataset]:
    """About `size` examples, with the shares of the classes kept, and the rest.

    Examples
    --------
    >>> some, rest = divided(Dataset.from_dict({"text": list("abcdef"), "label": [0, 0, 0, 0, 1, 1]}), 3, seed=0)
    >>> some["label"][:], len(rest)
    ([0, 0, 1], 3)
    """
    if size >= len(data):
        return data, data.select([])
    apart, rest = split_rows(data["label"][:], shares=[size / len(data)], seed=seed)
    return data.select(apart), data.select(rest)


def bounded(
    data: Mapping[Split, Dataset], sizes: Mapping[Split, int | None], seed: int
) -> dict[Split, Dataset]:
    """About `sizes[split]` examples a split, with the shares of the classes kept; `None` takes all.

    Where `data` has no validation split, `sizes["validation"]` training examples become one, at most a fifth
    of them; by default a tenth, at most 500.

    Examples
    --------
    >>> rows = Dataset.from_dict({"text": list("abcdefgh"), "label": [0, 1] * 4})
    >>> parts = bounded({"train": rows, "test": rows}, {"train": 4, "validation": None, "test": None}, seed=0)
    >>> {split: len(part) for split, part in parts.items()}
    {'train': 4, 'test': 8, 'validation': 2}
    """
    for split, size in sizes.items():
        if size is not None and size < 1:
            raise DataError(f"`{split}` must be at least 1, or left out to take all; got {size}.")
    parts = dict(data)
    if "validation" not in parts:
        everything = parts["train"]
        size = min(sizes["validation"] or min(500, len(everything) // 10), len(everything) // 5)
        parts["validation"], parts["train"] = divided(everything, max(1, size), seed)
        if len(set(parts["train"]["label"][:])) < len(set(everything["label"][:])):
            raise DataError(
                "A class has a single training example, none for validation. Give two at least."
            )
    for split, size in sizes.items():
        if size and split in data:
            parts[split] = divided(parts[split], size, seed)[0]
    return parts


def by_split(data: Dataset, columns: Sequence[str], source: str) -> dict[Split, Dataset]:
    """The rows of a table by its column `split`, with `columns` alone. Rows of other splits are dropped.

    Examples
    --------
    >>> rows = {"text": ["a", "b", "c"], "label": [0, 1, 0], "split": ["train", "test", "other"]}
    >>> parts = by_split(Dataset.from_dict(rows), ["text", "label"], "my.parquet")
    >>> {split: part["text"][:] for split, part in parts.items()}
    {'train': ['a'], 'test': ['b']}
    """
    missing = [column for column in ("split", *columns) if column not in data.column_names]
    if missing:
        raise DataError(
            f"`{source}` has no column `{missing[0]}`. Its columns: {data.column_names}."
        )
    names = np.array(data["split"][:])
    inputs = data.select_columns(list(columns))
    found: dict[Split, Dataset] = {
        split: inputs.select(np.flatnonzero(names == key))
        for split, keys in SPLIT_NAMES.items()
        for key in keys
        if key in names
    }
    for split in ("train", "test"):
        if split not in found:
            there = sorted(set(names.tolist()))
            raise DataError(f"`{source}` has no row of the split `{split}`. Its splits: {there}.")
    return found


def of_classes(data: Dataset, numbers: Sequence[int]) -> Dataset:
    """The rows of some classes, whose labels then count from 0 in the order of `numbers`.

    Examples
    --------
    >>> rows = Dataset.from_dict({"text": list("abcd"), "label": [0, 1, 2, 1]})
    >>> of_classes(rows, [2, 1]).to_dict()
    {'text': ['b', 'c', 'd'], 'label': [1, 0, 1]}
    """
    labels = np.array(data["label"][:])
    place = np.full(
        max(labels.max(initial=0), *numbers) + 2, -1
    )  # the last is for label -1, no class
    place[list(numbers)] = np.arange(len(numbers))
    mine = place[labels]
    return data.remove_columns("label").add_column("label", mine).select(np.flatnonzero(mine >= 0))


def class_tasks(
    classes: Sequence[str],
    data: Mapping[Split, Dataset],
    *,
    tasks: int,
    order_seed: int | None,
    sizes: Mapping[Split, int | None],
    seed: int,
) -> tuple[Task, ...]:
    """Deal the classes of one data set out to tasks of equal size, about `sizes[split]` examples each (see `bounded`).

    With `order_seed` the classes are shuffled first, by the legacy generator of NumPy: the orders of the literature
    come from it.

    Raises
    ------
    DataError
        `tasks` does not divide the number of classes, or a class has a single training example.
    """
    if tasks < 1 or len(classes) % tasks or tasks == len(classes):
        raise DataError(
            f"`tasks` must divide the {len(classes)} classes into tasks of at least two, got {tasks}."
        )
    order = np.arange(len(classes))
    if order_seed is not None:
        order = np.random.RandomState(order_seed).permutation(len(classes))
    found = []
    for i, group in enumerate(np.split(order, tasks)):
        numbers: list[int] = group.tolist()
        parts = bounded(
            {split: of_classes(part, numbers) for split, part in data.items()}, sizes, seed
        )
        found.append(Task(f"part{i + 1:02}", tuple(classes[number] for number in numbers), **parts))
    return tuple(found)
