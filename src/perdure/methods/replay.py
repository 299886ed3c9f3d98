"""Experience replay around any method: some old examples are kept, and mixed with new ones."""

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
from perdure.models.backbone import Backbone, pooled


@dataclass(kw_only=True)
class Replay(Wrapper):
    """Learn by another method, on a mix of the new task's examples and kept ones of old tasks.

    Old examples count like new ones, each under its own task's head, which is trained further.
    After each task some of its examples are added to the store, which is part of the method's state
    and so is saved in the task's folder. `store_bytes` is its size, and is in events.jsonl.

    Parameters
    ----------
    method
        The inner method.
    per_class
        The number of examples that are kept of each class; of each task, if the answer is free
        text.
    strategy
        How they are chosen: `balanced`, drawn at random from each class; `herding`, those whose
        mean feature is closest to the class's (of a language model: the mean of the last hidden
        states over the prompt); or `reservoir`, a uniform sample of all examples seen, of
        `per_class` times the number of classes (as far as possible: if the number of classes grows
        faster than that of examples, old ones are missing).

    References
    ----------
    Ratcliff, Connectionist models of recognition memory, 1990; Chaudhry et al., On Tiny
    Episodic Memories in Continual Learning, arXiv 1902.10486; herding: Rebuffi et al., iCaRL,
    arXiv 1611.07725.
    """

    per_class: Annotated[int, Ge(1)] = 20
    strategy: Strategy = "balanced"
    # The tasks whose examples are asked for, which is done before each task, in a resumed run too.
    _seen: list[Task] = field(default_factory=list, init=False, repr=False)

    def __post_init__(self):
        # A method that keeps all data trains on it anyway, and one that trains nothing on none.
        if not self.method.trains or self.method.keeps_all:
            raise InputError(
                f"`{type(self.method).__name__}` has no use for old examples: "
                "there is nothing to replay."
            )

    @property
    def isolates(self) -> bool:
        """False: a task is also trained on examples of others."""
        return False

    @property
    def store_bytes(self) -> int:
        """The size of the kept examples: of texts with their answers in words, and of images as
        they are encoded.
        """
        return Exemplars.of(self.remembered).size

    def examples(self, seen: Sequence[Task]) -> Rows:
        """Return the inner method's rows, and the kept rows of the old tasks."""
        self._seen = list(seen)
        old = {task.name: task.classes for task in seen[:-1]}
        kept = Exemplars.of(self.remembered).rows(old)
        return [*super().examples(seen), *kept]

    def end(self, backbone: Backbone, task: Task, optimizer: Optimizer) -> None:
        """Choose which of the task's examples to keep."""
        super().end(backbone, task, optimizer)
        rows = backbone.encode(task.rows("train"))
        features = pooled(backbone, rows) if self.strategy == "herding" else None
        self._keep(task, rows.labels, features)

    def foresee(self, task: Task) -> None:
        """Keep as many examples of a task as `end` would; herding cannot choose which."""
        super().foresee(task)
        self._keep(task, task.groups("train"), None)

    def _keep(
        self,
        task: Task,
        labels: Sequence[int],
        features: Float[Tensor, "examples features"] | None,
    ) -> None:
        """Choose which of a task's examples to keep, by their features if there are any."""
        # Examples of tasks that were forgotten go, and so do those of this task if it is learned
        # again.
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
        """Keep a uniform sample of all examples seen; old tasks make room for the new one.

        `size` is the number of examples of the new task.
        """
        remembered = {*kept.labels, task.name}
        groups = {seen.name: seen.group_count for seen in self._seen if seen.name in remembered}
        counts = exemplars.shares(
            self.per_class * sum(groups.values()),
            kept.seen | {task.name: size},
            kept.counts | {task.name: size},
            random,
        )
        # What remains in `counts` are the old tasks, which `thin` cuts down.
        count = counts.pop(task.name)
        chosen = random.permutation(size)[:count]
        kept.add(task, sorted(chosen.tolist()))
        kept.thin(counts, random)
