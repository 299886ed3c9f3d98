"""Variational continual learning (Nguyen et al. 2018): each posterior is the next task's prior."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated

import numpy as np
import torch
from annotated_types import Ge
from torch import nn
from torch.optim import Optimizer

from perdure.data import exemplars
from perdure.data.exemplars import Exemplars
from perdure.data.task import Rows, Task, TaskRows
from perdure.errors import InputError
from perdure.methods.parts.variational import Variational
from perdure.models.backbone import Backbone
from perdure.seeds import derived


@dataclass(kw_only=True)
class VCL(Variational):
    """Learn a Gaussian posterior q_t over the module and the head, with q_{t-1} as its prior.

    L = cross-entropy, averaged over examples and samples of q, + beta / N · KL(q ‖
    q_{t-1}). The prior of the first task, and of each new head, is N(initial value,
    prior_sigma²). The model answers with the means. The settings `beta`, `divisor`,
    `prior_sigma`, `initial_sigma` and `sampling` are explained in docs/methods.md.

    With a coreset, some examples of each task are set aside. After the task, the
    posterior is adapted to the coresets of all tasks, and the model answers with the
    adapted means; but the next task's prior is the posterior from before that. The
    coresets are part of the method's state; the size of their inputs is `store_bytes` in
    `events.jsonl`.

    Parameters
    ----------
    coreset
        The number of examples of each class (of each task, if answers are free text) that
        are set aside, at random. With 0, nothing is stored but q_{t-1}: two numbers per
        parameter.
    coreset_epochs
        The number of passes over the coresets for the adaptation.

    References
    ----------
    Nguyen, Li, Bui & Turner, Variational Continual Learning, arXiv 1710.10628. There a network is
    trained from scratch, and the prior of the first task is N(0, 1). There, with a head for each
    task, q is adapted to each task's coreset separately, which requires a model for each task; here
    there is one adaptation to all coresets, as there with a single head.
    """

    coreset: Annotated[int, Ge(0)] = 0
    coreset_epochs: Annotated[int, Ge(1)] = 10
    # Both are set before each task, in a resumed run too: the tasks passed to `examples`,
    # and the row numbers of the task's coreset.
    _seen: list[Task] = field(default_factory=list, init=False, repr=False)
    _chosen: list[int] = field(default_factory=list, init=False, repr=False)

    @property
    def store_bytes(self) -> int:
        """The size of the inputs in the coresets, in bytes."""
        return Exemplars.of(self.state).size

    def parameters(self, backbone: Backbone) -> list[nn.Parameter]:
        """Return the parameters to train; with a coreset, old heads are included.

        The old heads have no gradients until the adaptation to the coresets.
        """
        parameters = super().parameters(backbone)
        if self.coreset:
            given = set(map(id, parameters))
            for task in backbone.heads:
                for value in backbone.own(task).parameters():
                    if id(value) not in given:
                        given.add(id(value))
                        parameters.append(value)
        return parameters

    def begin(self, backbone: Backbone, task: Task) -> None:
        """Choose the coreset of the task, and continue from the posterior before any adaptation."""
        super().begin(backbone, task)
        self._chosen = []
        if self.coreset:
            random = np.random.default_rng(derived(torch.initial_seed(), task.name, "coreset"))
            self._chosen = exemplars.balanced(task.groups("train"), self.coreset, random)

    def examples(self, seen: Sequence[Task]) -> Rows:
        """Return the training examples of the new task without its coreset."""
        self._seen = list(seen)
        task = seen[-1]
        if not self.coreset:
            return task.rows("train")
        aside = set(self._chosen)
        left = [row for row in range(len(task.train)) if row not in aside]
        if not left:
            raise InputError(
                f"`coreset: {self.coreset}` sets aside all {len(task.train)} training examples of "
                f"task `{task.name}`: choose a smaller number."
            )
        return [TaskRows(task.name, task.train.select(left), task.classes)]

    def end(self, backbone: Backbone, task: Task, optimizer: Optimizer) -> None:
        """Store the posterior and the coreset, and adapt the model to all coresets."""
        super().end(backbone, task, optimizer)
        if not self.coreset:
            return
        # Without the coresets of forgotten tasks, and of this task if it is learned again.
        old = [earlier.name for earlier in self._seen if earlier.name != task.name]
        kept = Exemplars.of(self.state).of_tasks(old)
        kept.add(task, self._chosen)
        self.state |= kept.state()
        rows = kept.rows({seen.name: seen.classes for seen in self._seen})
        self.adapt(backbone, rows, epochs=self.coreset_epochs)
