"""A slow adapter (2025): an exponential mean of the trained one, which later tasks start from."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated

import torch
from annotated_types import Ge, Lt
from torch import nn
from torch.optim import Optimizer

from perdure.data.task import Task
from perdure.errors import InputError
from perdure.learning.method import Group
from perdure.learning.training import Training
from perdure.learning.wrapper import Wrapper, inner_name
from perdure.models.backbone import Backbone

PREFIX = "slow/"
"""During a task, the state contains the mean of each parameter as `slow/NUMBER`."""


@dataclass(kw_only=True)
class SlowAdapter(Wrapper):
    """Learn with another method, and keep an exponential mean of its parameters over the steps.

    After each step, θ_slow ← decay · θ_slow + (1 − decay) · θ, where θ contains the
    parameters of the inner method: its module and, with `lwf`, the heads of earlier
    tasks. At the end of the task θ ← θ_slow. This model is evaluated, saved and trained
    further, so a method that trains one module carries the mean along the stream. At the
    beginning of a task θ_slow = θ.

    The head of the new task is not averaged, because a mean would contain its random
    initial values; with `vcl` inside, its σ is, which is the same everywhere at first. Nor
    are the heads of earlier tasks averaged with `replay` inside, which trains them further,
    but does not count them among its parameters. With LoRA, the mean is one of the factors,
    not of their product.

    Parameters
    ----------
    method
        The inner method, such as `sequential`.
    decay
        β. The mean covers about the last 1 / (1 − β) steps of a task, and keeps the share
        β^steps of the values from its beginning. If a task has fewer steps than that, it
        is hardly learned.

    References
    ----------
    The slow learner of SuRe, arXiv 2511.22367, which also replays surprising examples: wrap
    `{name: replay, method: sequential, strategy: surprise}`.
    """

    decay: Annotated[float, Ge(0), Lt(1)] = 0.95
    # Set before each task, in a resumed run too.
    _task: Task | None = field(default=None, init=False, repr=False)

    def __post_init__(self):
        if self.method.computes_heads:
            raise InputError(
                f"`slow_adapter` averages over training steps, but "
                f"`{inner_name(self)}` takes none. Use `sequential` or `lwf`."
            )

    def optimizer(self, groups: list[Group], training: Training, *, examples: int) -> Optimizer:
        """Return the optimizer of the inner method.

        Raises
        ------
        InputError
            The settings ask for the best epoch, which would be replaced by the mean.
        """
        if training.best or training.patience is not None:
            raise InputError(
                "`slow_adapter` ends with a mean over all steps of a task, not with its best "
                "epoch: leave out `best` and `patience`."
            )
        return super().optimizer(groups, training, examples=examples)

    def begin(self, backbone: Backbone, task: Task) -> None:
        super().begin(backbone, task)
        self._task = task

    def update(self, backbone: Backbone, step: Callable[[], None]) -> None:
        """Take a step of the inner method, and move the mean, which starts as its parameters."""
        assert self._task is not None
        averaged = self._averaged(backbone, self._task)
        for key, parameter in averaged.items():
            if key not in self.remembered:  # before the first step
                self.remembered[key] = parameter.detach().clone()
        super().update(backbone, step)
        for key, parameter in averaged.items():
            # A state that was read from a checkpoint is on the CPU.
            slow = self.remembered[key].to(parameter)
            self.remembered[key] = slow.lerp_(parameter.detach(), 1 - self.decay)

    def end(self, backbone: Backbone, task: Task, optimizer: Optimizer) -> None:
        """Replace the parameters by their mean, and finish the task with it."""
        with torch.no_grad():
            for key, parameter in self._averaged(backbone, task).items():
                if key in self.remembered:  # unless there were no steps
                    parameter.copy_(self.remembered.pop(key))
        super().end(backbone, task, optimizer)

    def _averaged(self, backbone: Backbone, task: Task) -> dict[str, nn.Parameter]:
        """Return the parameters of the inner method without the head of the new task, by key."""
        head = {id(parameter) for parameter in backbone.own(task.name).parameters()}
        averaged: dict[str, nn.Parameter] = {}
        for parameter in self.method.parameters(backbone):
            if id(parameter) not in head:
                averaged[f"{PREFIX}{len(averaged)}"] = parameter
        return averaged
