"""Memory aware synapses (Aljundi et al. 2018): protect weights that earlier outputs depend on."""

from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Ge
from torch import Tensor
from torch.optim import Optimizer

from perdure.data.task import Task
from perdure.learning.method import PeftMethod, Tuned
from perdure.methods.parts.anchor import hold, penalty
from perdure.methods.parts.per_example import mean_over_examples
from perdure.models import adapters
from perdure.models.backbone import Backbone
from perdure.models.examples import Batch
from perdure.models.logits import Logits


@dataclass(kw_only=True)
class MAS(PeftMethod):
    """Train one PEFT module on task after task, with a penalty on changes to weights that earlier
    outputs depend on.

    L = cross-entropy + strength · Σ_i Ω_i (θ_i − θ*_i)². Ω_i is the sum over tasks of E_x
    |∂‖f(x)‖² / ∂θ_i|, where f(x) are the logits of the task's head and the gradient is
    computed per example. Labels are not used.

    Parameters
    ----------
    strength
        λ. A suitable value depends on the size of the logits, so it needs tuning.

    References
    ----------
    Aljundi et al., Memory Aware Synapses: Learning what (not) to forget, arXiv 1711.09601.
    """

    usual_rule = "last"
    tuned = Tuned("strength", 1e-3, 1e2)

    strength: Annotated[float, Ge(0)] = 0.1

    def begin(self, backbone: Backbone, task: Task) -> None:
        self.go_on(backbone)

    def loss(self, backbone: Backbone, batch: Batch) -> Tensor:
        loss = backbone.losses(batch).mean()
        if not self.state:  # the first task
            return loss
        distance = penalty(
            adapters.trainable(backbone.model),
            self.state,
        )
        return loss + self.strength * distance

    def end(self, backbone: Backbone, task: Task, optimizer: Optimizer) -> None:
        """Add the task's Ω and θ* to the penalty."""
        importance = mean_over_examples(
            backbone,
            backbone.encode(task.rows("train")),
            _norms,
            torch.abs,
        )
        hold(
            self.state,
            adapters.trainable(backbone.model),
            importance,
        )


def _norms(logits: Logits) -> list[Tensor]:
    """Return ‖f(x)‖² of each example."""
    squares = logits.values.square().sum(1)
    return [logits.per_example(squares)]
