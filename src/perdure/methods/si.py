"""Synaptic intelligence (Zenke et al. 2017): protect weights that lowered earlier tasks' losses."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Ge, Gt
from torch import Tensor, nn
from torch.optim import Optimizer

from perdure.data.task import Task
from perdure.learning.method import PeftMethod, Tuned
from perdure.methods.parts.anchor import gradient, hold, penalty
from perdure.models import adapters
from perdure.models.backbone import Backbone
from perdure.models.examples import Batch


@dataclass(kw_only=True)
class SI(PeftMethod):
    """Train one PEFT module on task after task, with a penalty on changes to weights that lowered
    earlier losses.

    L = cross-entropy + strength · Σ_i Ω_i (θ_i − θ*_i)². While a task is trained,
    w_i += −g_i Δθ_i at each step, where g is the gradient of the task's loss (without the
    penalty, before clipping) and Δθ is the actual step. After the task,
    Ω_i += max(w_i, 0) / ((θ_i − θ_i at the start of the task)² + damping).

    Parameters
    ----------
    strength
        The paper's c.
    damping
        ξ, which keeps Ω finite if a parameter has hardly changed.

    References
    ----------
    Zenke, Poole & Ganguli, Continual Learning Through Synaptic Intelligence, arXiv 1703.04200.
    AdamW does not step along the gradient, so the path integral follows the actual steps. Negative
    contributions count as zero, so that no parameter is pushed away from θ*. With `training.best`,
    the path includes all epochs, even those after the best one.
    """

    usual_rule = "last"
    tuned = Tuned("strength", 1e-2, 1e3)

    strength: Annotated[float, Ge(0)] = 1.0
    damping: Annotated[float, Gt(0)] = 0.1

    def begin(self, backbone: Backbone, task: Task) -> None:
        self.go_on(backbone)
        # In the state, because both are needed if the run resumes in the middle of the task.
        parameters = adapters.trainable(backbone.model)
        for name, value in parameters.items():
            start = value.detach().clone()
            self.state[f"path/{name}"] = torch.zeros_like(start)
            self.state[f"start/{name}"] = start

    def loss(self, backbone: Backbone, batch: Batch) -> Tensor:
        loss = backbone.losses(batch).mean()
        # The first task has a path in the state, but no importance yet.
        has_penalty = any(name.startswith("importance/") for name in self.state)
        if not has_penalty:
            return loss
        distance = penalty(
            adapters.trainable(backbone.model),
            self.state,
        )
        return loss + self.strength * distance

    def update(self, backbone: Backbone, step: Callable[[], None]) -> None:
        """Take a step, and record how much each weight contributed to lowering the task's loss."""
        parameters = adapters.trainable(backbone.model)
        # The step clips the gradients in place, so the task's gradients are computed before it.
        gradients = self._of_task(parameters)
        before = {}
        for name in gradients:
            before[name] = parameters[name].detach().clone()
        step()
        for name, g in gradients.items():
            after = parameters[name].detach()
            moved = after - before[name]
            # A resumed run's path is on the CPU at first.
            key = f"path/{name}"
            path = self.state[key].to(g)
            self.state[key] = path - g * moved

    def _of_task(self, parameters: dict[str, nn.Parameter]) -> dict[str, Tensor]:
        """Return the gradients of the task's loss, without the gradients of the penalty."""
        of_penalty = gradient(parameters, self.state)
        gradients = {}
        for name, value in parameters.items():
            if value.grad is None:  # the batch did not use this layer
                continue
            added = self.strength * of_penalty.get(name, 0.0)
            gradients[name] = value.grad - added
        return gradients

    def end(self, backbone: Backbone, task: Task, optimizer: Optimizer) -> None:
        """Compute the importance of each weight from its path integral; add it to the penalty."""
        parameters = adapters.trainable(backbone.model)
        importance = {}
        for name, value in parameters.items():
            # The next task begins a new path.
            start = self.state.pop(f"start/{name}").to(value)
            path = self.state.pop(f"path/{name}").to(value)
            moved = value.detach() - start
            # A negative Ω would push the parameter away from its anchor, without limit.
            contribution = path.clamp_min(0)
            squared_distance = moved.square()
            importance[name] = contribution / (squared_distance + self.damping)
        hold(self.state, parameters, importance)
