"""Experience replay for any method: some old examples are stored and mixed with new ones."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated

import numpy as np
import torch
from annotated_types import Ge
from jaxtyping import Float
from torch import Tensor
from torch.optim import Optimizer

from perdure.data import exemplars
from perdure.data.exemplars import Exemplars, Strategy
from perdure.data.task import Rows, Task
from perdure.errors import InputError
from perdure.learning.wrapper import Wrapper
from perdure.methods.parts.reservoir import add_sample
from perdure.models.backbone import Backbone, pooled


@dataclass(kw_only=True)
class Replay(Wrapper):
    """Learn with another method, on the new task's examples mixed with stored examples of old
    tasks.

    Old examples have the same weight as new ones. Each uses the head of its task, which
    is trained further. After each task, some of its examples are added to the store,
    which is part of the method's state and so is saved in the task's folder. The size of
    the store is `store_bytes` in `events.jsonl`.

    Parameters
    ----------
    method
        The inner method.
    per_class
        The number of examples to store for each class, or for each task if answers are free text.
    strategy
        The way in which the stored examples are chosen. `balanced`: at random from each
        class. `herding`: such that their mean feature is closest to the mean feature of
        the class (for a language model, features are means of the last hidden states over
        the prompt). `reservoir`: a uniform sample, of `per_class` times the number of
        classes, from all examples seen. The sample is not quite uniform if the number of
        classes grows faster than the number of examples, because examples that were
        dropped earlier cannot be brought back.

    References
    ----------
    Ratcliff, Connectionist models of recognition memory, 1990; Chaudhry et al., On Tiny
    Episodic Memories in Continual Learning, arXiv 1902.10486; herding: Rebuffi et al., iCaRL,
    arXiv 1611.07725.
    """

    per_class: Annotated[int, Ge(1)] = 20
    strategy: Strategy = "balanced"
    # The tasks passed to `examples`, which is called before each task, in a resumed run too.
    _seen: list[Task] = field(default_factory=list, init=False, repr=False)

    def __post_init__(self):
        # A method that keeps all data replays it anyway, and one that computes heads cannot.
        if self.method.computes_heads or self.method.keeps_all:
            raise InputError(
                f"`{type(self.method).__name__}` has no use for old examples: "
                "there is nothing to replay."
            )

    @property
    def isolates(self) -> bool:
        """False, because a task is also trained on examples of other tasks."""
        return False

    @property
    def store_bytes(self) -> int:
        """The size of the stored examples in bytes: texts with their answers, or encoded images."""
        return Exemplars.of(self.remembered).size

    def examples(self, seen: Sequence[Task]) -> Rows:
        """Return the rows of the inner method, followed by the stored rows of old tasks."""
        self._seen = list(seen)
        old = {task.name: task.classes for task in seen[:-1]}
        kept = Exemplars.of(self.remembered).rows(old)
        return [*super().examples(seen), *kept]

    def end(self, backbone: Backbone, task: Task, optimizer: Optimizer) -> None:
        """Choose which examples of the task to store, and store them."""
        super().end(backbone, task, optimizer)
        rows = backbone.encode(task.rows("train"))
        features = pooled(backbone, rows) if self.strategy == "herding" else None
        self._store(task, rows.labels, features)

    def foresee(self, task: Task) -> None:
        """Store as many examples as `end` would, without computing any features."""
        super().foresee(task)
        self._store(task, task.groups("train"), None)

    def _store(
        self,
        task: Task,
        labels: Sequence[int],
        features: Float[Tensor, "examples features"] | None,
    ) -> None:
        """Choose examples of a task and store them; `features` are needed for herding only."""
        # Drop the examples of forgotten tasks, and those of this task if it is learned again.
        old = [earlier.name for earlier in self._seen if earlier.name != task.name]
        kept = Exemplars.of(self.remembered).of_tasks(old)
        # The loop has set torch's seed for this task's end: a resumed run draws the same examples.
        random = np.random.default_rng(torch.initial_seed())
        if self.strategy == "reservoir":
            self._sample(kept, task, len(labels), random)
        elif features is not None:
            chosen = exemplars.herded(
                features,
                labels,
                self.per_class,
            )
            kept.add(task, chosen)
        else:
            chosen = exemplars.balanced(
                labels,
                self.per_class,
                random,
            )
            kept.add(task, chosen)
        self.remembered = kept.state()

    def _sample(
        self,
        kept: Exemplars,
        task: Task,
        size: int,
        random: np.random.Generator,
    ) -> None:
        """Store a uniform sample of all examples seen, dropping old ones to make room.

        `size` is the number of examples of the new task.
        """
        remembered = {*kept.labels, task.name}
        groups = {seen.name: seen.group_count for seen in self._seen if seen.name in remembered}
        capacity = self.per_class * sum(groups.values())
        add_sample(kept, task, size, capacity, random)
