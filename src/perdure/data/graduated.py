"""Graduated streams, whose tasks fade into each other instead of ending at a boundary."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from datasets import Dataset, concatenate_datasets
from jaxtyping import Float

from perdure.data.task import SPLITS, Task, TaskStream
from perdure.errors import InputError

Array = np.ndarray


def graduated(stream: TaskStream, power: float = 12.0, *, seed: int = 0) -> TaskStream:
    """Return a stream in which the training examples of the tasks are mixed gradually.

    The training examples of all tasks form one sequence, which is read once. At position
    i, the next example is drawn from task j with a probability proportional to
    (max_k d_k − d_j)^power, where d_j = |i − the middle of task j in the original order|.
    A task with no examples left has a probability of 0. Every example is drawn once.

    The sequence is cut into as many segments as there are tasks, where the tasks would
    have begun. A segment has the name, the validation examples and the test examples of
    its task, but the classes of all tasks, so that the stream has the scenario `domain`.

    Parameters
    ----------
    power
        κ. The larger it is, the sharper the transitions are.
    seed
        The seed for the order of examples.

    Raises
    ------
    InputError
        The stream has only one task, or the examples of its tasks have different columns.

    References
    ----------
    The experiments of Bayesian Adaptive Moment Regularization, arXiv 2309.08546. With two
    tasks, the weights are not gradual: the farther task always has weight 0.
    """
    if len(stream) < 2:
        raise InputError(
            "A graduated stream needs at least two tasks, which fade into each other: stream "
            f"`{stream.name}` has only `{stream[0].name}`."
        )
    if not power > 0:
        raise InputError(f"`graduated` is {power}, but must be more than 0.")
    splits = {split: _with_all_classes(stream, split) for split in SPLITS}
    training = splits["train"]
    sizes = [len(data) for data in training]
    order = sequence(sizes, power, seed=seed)
    together = concatenate_datasets(training)
    tasks: list[Task] = []
    first = 0
    for number, task in enumerate(stream):
        last = first + sizes[number]
        segment = replace(
            task,
            classes=stream.classes,
            train=together.select(order[first:last]),
            validation=splits["validation"][number],
            test=splits["test"][number],
            in_order=True,
        )
        tasks.append(segment)
        first = last
    return replace(stream, tasks=tuple(tasks), scenario="domain", fading=power)


def weights(position: int, sizes: Sequence[int], power: float) -> Float[Array, " tasks"]:
    """Return the weight of each task at a position of the sequence; the largest is 1.

    Examples
    --------
    >>> weights(5, [10, 10, 10], 1).tolist()
    [1.0, 0.5, 0.0]
    """
    ends = np.cumsum(sizes)
    middles = ends - np.asarray(sizes) / 2
    distances = np.abs(position - middles)
    nearness = distances.max() - distances
    largest = nearness.max()
    # Equal distances to all tasks make them equally likely.
    return (nearness / largest) ** power if largest else np.ones(len(sizes))


def sequence(sizes: Sequence[int], power: float, *, seed: int) -> list[int]:
    """Return the order in which the examples of all tasks are read, as indices.

    The examples of the first task have the indices from 0, followed by those of the second.
    """
    random = np.random.default_rng(seed)
    starts = np.cumsum([0, *sizes[:-1]])
    left = []
    for start, size in zip(starts, sizes, strict=True):
        shuffled = start + random.permutation(size)
        left.append(shuffled.tolist())
    order: list[int] = []
    for position in range(sum(sizes)):
        available = np.array([bool(examples) for examples in left])
        chances = weights(position, sizes, power) * available
        # Only the farthest task may have examples left, and its weight is 0.
        if not chances.sum():
            chances = available.astype(float)
        task = random.choice(len(sizes), p=chances / chances.sum())
        order.append(left[task].pop())
    return order


def _with_all_classes(stream: TaskStream, split: str) -> list[Dataset]:
    """Return a split of each task, with labels that are indices into the stream's classes."""
    changed: list[Dataset] = []
    for task in stream:
        data: Dataset = getattr(task, split)
        if "row" in data.column_names:  # rows of different tables
            data = data.remove_columns("row")
        if task.classes:
            index = np.array(stream.class_index(task.name))
            labels = index[np.asarray(data["label"][:])]
            data = data.remove_columns("label").add_column("label", labels)
        # Sorted, because tables may have their columns in different orders.
        data = data.select_columns(sorted(data.column_names))
        if changed and data.features != changed[0].features:
            raise InputError(
                "The tasks of a graduated stream are mixed, so their examples need the same "
                f"columns: `{stream[0].name}` has {changed[0].column_names}, `{task.name}` "
                f"{data.column_names}."
            )
        changed.append(data)
    return changed
