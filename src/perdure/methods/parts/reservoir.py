"""A uniform sample of the examples of all tasks, updated after each task."""

import numpy as np

from perdure.data import exemplars
from perdure.data.exemplars import Exemplars
from perdure.data.task import Task


def add_sample(
    kept: Exemplars, task: Task, size: int, capacity: int, random: np.random.Generator
) -> None:
    """Store examples of a new task, and drop old ones to make room, in place.

    Afterwards, every example seen so far is equally likely to be among the stored ones.

    Parameters
    ----------
    kept
        The stored examples of the earlier tasks.
    size
        The number of the new task's training examples.
    capacity
        The maximum number of stored examples of all tasks.
    """
    counts = exemplars.shares(
        capacity,
        kept.seen | {task.name: size},
        kept.counts | {task.name: size},
        random,
    )
    # Only old tasks remain in `counts`; `thin` reduces their examples to these numbers.
    count = counts.pop(task.name)
    kept.add(task, exemplars.drawn(size, count, random))
    kept.thin(counts, random)
