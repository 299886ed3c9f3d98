"""How many examples of a task `replay` stores, and which."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from torch import Tensor

from perdure.data import exemplars
from perdure.data.exemplars import Exemplars, Strategy
from perdure.data.task import Task
from perdure.methods.parts.reservoir import add_sample


@dataclass(frozen=True, kw_only=True)
class Choice:
    """The settings of `replay` for what is stored, which it explains."""

    per_class: int
    share: float | None
    strategy: Strategy

    def count(self, groups: int, size: int) -> int:
        """Return how many examples to store of a task with `size` examples in `groups` classes."""
        if self.share is None:
            return self.per_class * groups
        return max(1, round(self.share * size))

    def store(
        self,
        kept: Exemplars,
        task: Task,
        labels: Sequence[int],
        *,
        features: Float[Tensor, "examples features"] | None,
        groups: Mapping[str, int],
        random: np.random.Generator,
    ) -> None:
        """Store examples of a new task, in place.

        Parameters
        ----------
        kept
            The stored examples of the earlier tasks, which `reservoir` thins out.
        labels
            The classes of the task's training examples.
        features
            The features of these examples for `herding`; a dry run has none.
        groups
            The number of classes of each task.
        """
        size = len(labels)
        if self.strategy == "reservoir":
            capacity = 0
            for name, seen in (kept.seen | {task.name: size}).items():
                capacity += self.count(groups[name], seen)
            add_sample(kept, task, size, capacity, random)
        elif self.share is not None:
            chosen = exemplars.drawn(size, self.count(groups[task.name], size), random)
            kept.add(task, chosen)
        elif features is not None:
            kept.add(task, exemplars.herded(features, labels, self.per_class))
        else:
            kept.add(task, exemplars.balanced(labels, self.per_class, random))
