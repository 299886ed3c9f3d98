"""Functions that split examples, draw samples, and select classes. All draws are seeded."""

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

# If there is no validation split, one is taken from the training examples. By default it
# is a tenth of them, but at most this number, because it is evaluated many times: to keep
# the best weights, and to choose a scale.
MAX_DEFAULT_VALIDATION = 500


def split_rows(labels: Sequence[int], *, shares: Sequence[float], seed: int) -> list[np.ndarray]:
    """Split row indices into parts with the given shares, stratified by class.

    Every part has at least one row of each class, as long as there are enough rows.

    Return one array of row indices per share, and a last one with the remaining rows.

    Examples
    --------
    >>> [rows.tolist() for rows in split_rows([0, 0, 0, 1, 1, 1], shares=[0.3], seed=0)]
    [[2, 3], [0, 1, 4, 5]]
    """
    values = np.asarray(labels)
    # A single draw for all classes. Changing it would change the splits behind published results.
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
    """Draw about `size` examples, stratified by class, and return them and the rest.

    If the answers are free text, there are no classes, and examples are drawn from all rows.

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
    """Return the class of each example, or 0 for every example if the answers are free text."""
    return data["label"][:] if "label" in data.column_names else [0] * len(data)


def bounded(
    data: Mapping[Split, Dataset], sizes: Mapping[Split, int | None], seed: int
) -> dict[Split, Dataset]:
    """Draw about `sizes[split]` examples from each split, stratified by class.

    A size of None keeps all examples. If `data` has no validation split, one is taken
    from the training examples: `sizes["validation"]` examples, but at most a fifth of
    them. By default, it is a tenth of them, but at most 500 examples.

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
        # Done before the training split is reduced to its size, which validation must not affect.
        size = sizes["validation"]
        validation, train = _with_validation(splits["train"], size, seed)
        splits["validation"] = validation
        splits["train"] = train
    for split, size in sizes.items():
        # A validation split that was just made already has its size.
        if size and split in data:
            chosen, _ = divided(splits[split], size, seed)
            splits[split] = chosen
    return splits


def _with_validation(data: Dataset, size: int | None, seed: int) -> tuple[Dataset, Dataset]:
    """Split training examples into a validation split and the rest."""
    if size is None:
        size = min(len(data) // 10, MAX_DEFAULT_VALIDATION)
    # At most a fifth, even if more are requested, and at least one, as no split may be empty.
    size = min(size, len(data) // 5)
    size = max(1, size)
    validation, train = divided(data, size, seed)
    # Each class contributes at least one example to validation, which may have been its only one.
    classes = set(_classes(data))
    classes_left = set(_classes(train))
    if len(classes_left) < len(classes):
        raise DataError(
            "A class has a single training example, which is too few for a validation split. "
            "Give at least two."
        )
    return validation, train


def by_split(data: Dataset, columns: Sequence[str], source: str) -> dict[Split, Dataset]:
    """Group the rows of a table by its `split` column, keeping only `columns` and known splits.

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
            raise DataError(f"`{source}` has no rows in split `{split}`. Its splits: {present}.")
    return splits


def of_classes(data: Dataset, numbers: Sequence[int]) -> Dataset:
    """Return the rows of the classes `numbers`, relabelled from 0 in that order.

    Examples
    --------
    >>> rows = Dataset.from_dict({"text": list("abcd"), "label": [0, 1, 2, 1]})
    >>> of_classes(rows, [2, 1]).to_dict()
    {'text': ['b', 'c', 'd'], 'label': [1, 0, 1]}
    """
    labels = np.array(data["label"][:])
    largest = max(labels.max(initial=0), *numbers)
    # A lookup table from old to new labels, with -1 for other classes. Its last entry is
    # for the label -1, which data sets use for rows without a class: NumPy counts it from
    # the end.
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
    """Divide the classes of a data set into tasks with the same number of classes.

    Each task has about `sizes[split]` examples per split (see `bounded`). With
    `order_seed`, the classes are first shuffled with NumPy's legacy generator, which
    reproduces the class orders used in the literature.

    Raises
    ------
    DataError
        The classes cannot be divided into `tasks` equal tasks of at least two classes, or
        a class has a single training example.
    """
    if tasks < 1 or len(classes) % tasks or tasks == len(classes):
        raise DataError(
            f"`tasks` must divide the {len(classes)} classes into tasks of at least two, "
            f"got {tasks}."
        )
    order = np.arange(len(classes))
    if order_seed is not None:
        # Not `default_rng`: its shuffles differ, so results would not be comparable with papers.
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
