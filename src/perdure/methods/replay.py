"""Experience replay around any method: some old examples are kept, and are trained on with the new ones."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch
from annotated_types import Ge
from torch.optim import Optimizer

from perdure.data import exemplars
from perdure.data.exemplars import Exemplars, Strategy
from perdure.data.task import Rows, Task
from perdure.errors import InputError
from perdure.learning.method import Need
from perdure.learning.wrapper import Wrapper
from perdure.models.backbone import Backbone, pooled


@dataclass(kw_only=True)
class Replay(Wrapper):
    """Learn by another method, on the new task's examples and those that are kept of the old ones, mixed.

    Old examples count like new ones, each under its own task's head, which is trained on. After each task the store
    takes up some of its examples; it lies in the method's state, and so on disk in the task's folder. `store_bytes` is
    its size, and is in events.jsonl.

    Parameters
    ----------
    method
        The method around which it is.
    per_class
        How many examples are kept of each class.
    strategy
        Which ones: `balanced`, drawn at random from each class; `herding`, those whose mean feature comes nearest to
        the class's; or `reservoir`, a uniform sample of all examples seen, of `per_class` times the number of classes
        (as far as it can be: where the number of classes grows faster than that of examples, old ones are missing).

    References
    ----------
    Ratcliff, Connectionist models of recognition memory, 1990; Chaudhry et al., On Tiny Episodic Memories in Continual
    Learning, arXiv 1902.10486; herding: Rebuffi et al., iCaRL, arXiv 1611.07725.
    """

    per_class: Annotated[int, Ge(1)] = 20
    strategy: Strategy = "balanced"

    def __post_init__(self):
        if not self.method.trains or self.method.keeps_all:
            raise InputError(
                f"`{type(self.method).__name__}` has no use for old examples: there is nothing to replay."
            )

    @property
    def isolates(self) -> bool:
        """No: a task is trained on examples of others."""
        return False

    @property
    def needs(self) -> frozenset[Need]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """What the other method needs, and classes, of which examples are chosen."""
        classes: frozenset[Need] = frozenset({"classes"})
        return self.method.needs | classes

    @property
    def store_bytes(self) -> int:
        """The size of the examples that are kept: of texts and images as they are encoded."""
        return Exemplars.of(self.remembered).size

    def examples(self, seen: Sequence[Task]) -> Rows:
        """The other method's, and what is kept of the old tasks."""
        old = {task.name: len(task.classes) for task in seen[:-1]}
        return [*super().examples(seen), *Exemplars.of(self.remembered).rows(old)]

    def end(self, backbone: Backbone, task: Task, optimizer: Optimizer) -> None:
        """Choose which of the task's examples are kept."""
        super().end(backbone, task, optimizer)
        rows, old = (
            backbone.encode(task.rows("train")),
            [name for name in backbone.heads if name != task.name],
        )
        kept = Exemplars.of(self.remembered).of_tasks(old)
        random = np.random.default_rng(torch.initial_seed())
        if self.strategy == "balanced":
            kept.add(task, exemplars.balanced(rows.labels, self.per_class, random))
        elif self.strategy == "herding":
            kept.add(task, exemplars.herded(pooled(backbone, rows), rows.labels, self.per_class))
        else:
            classes = sum(
                len(backbone.own(name).get_parameter("weight"))
                for name in {*kept.labels, task.name}
            )
            seen, left = kept.seen | {task.name: len(rows)}, kept.counts | {task.name: len(rows)}
            counts = exemplars.shares(self.per_class * classes, seen, left, random)
            kept.add(task, sorted(random.permutation(len(rows))[: counts.pop(task.name)].tolist()))
            kept.thin(counts, random)
        self.remembered = kept.state()
