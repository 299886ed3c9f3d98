"""How many examples of a task `replay` stores, and which."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from perdure.data import exemplars
from perdure.data.exemplars import Exemplars, Strategy
from perdure.data.task import Task
from perdure.errors import InputError
from perdure.methods.parts.reservoir import add_sample
from perdure.methods.parts.surprise import surprises
from perdure.models.backbone import Backbone, pooled
from perdure.models.examples import Examples


@dataclass(frozen=True, kw_only=True)
class Choice:
    """The settings of `replay` for what is stored, which it explains."""

    per_class: int
    share: float | None
    strategy: Strategy

    def check(self) -> None:
        """Raise `InputError` if a setting is out of its range, or does not suit another."""
        if self.per_class < 1:
            raise InputError(
                f"`per_class` is {self.per_class}, so `replay` has nothing to replay: give at "
                "least 1."
            )
        if self.share is None:
            return
        if not 0 < self.share <= 1:
            raise InputError(
                f"`share` is {self.share:g}, but must be greater than 0 and at most 1: 0.01 is 1 %."
            )
        if self.strategy == "herding":
            raise InputError(
                "`share` cannot be used with `strategy: herding`, which chooses examples of each "
                "class: use `per_class` instead, or `strategy: balanced`."
            )

    def count(self, groups: int, size: int) -> int:
        """Return how many examples to store of a task with `size` examples in `groups` classes."""
        if self.share is None:
            return self.per_class * groups
        return max(1, round(self.share * size))

    def measured(self, backbone: Backbone, examples: Examples) -> Tensor | None:
        """Return the values of the examples that the choice depends on, or None if it is random.

        These are features for `herding`, and surprises for `surprise`.
        """
        if self.strategy == "herding":
            return pooled(backbone, examples)
        if self.strategy == "surprise":
            return surprises(backbone, examples)
        return None

    def store(
        self,
        kept: Exemplars,
        task: Task,
        labels: Sequence[int],
        *,
        values: Tensor | None,
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
        values
            What `measured` returned for these examples; a dry run has none, and draws them.
        groups
            The number of classes of each task.
        """
        size = len(labels)
        if self.strategy == "reservoir":
            capacity = 0
            for name, seen in (kept.seen | {task.name: size}).items():
                capacity += self.count(groups[name], seen)
            add_sample(kept, task, size, capacity, random)
        else:
            kept.add(task, self._chosen(labels, values, random))

    def _chosen(
        self, labels: Sequence[int], values: Tensor | None, random: np.random.Generator
    ) -> list[int]:
        """Return the indices of the examples to store of one task, of each class or of all."""
        count = self.per_class
        if self.share is not None:
            labels = [0] * len(labels)
            count = self.count(1, len(labels))
        if values is None:
            return exemplars.balanced(labels, count, random)
        if self.strategy == "herding":
            return exemplars.herded(values, labels, count)
        return exemplars.surprising(values, labels, count)
