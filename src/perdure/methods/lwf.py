"""Learning without forgetting (Li & Hoiem 2016): preserve the outputs of old heads on new data."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Ge, Gt
from torch import Tensor, nn
from torch.func import functional_call

from perdure.data.task import Task
from perdure.learning.method import PeftMethod, Tuned
from perdure.models import adapters
from perdure.models.backbone import Backbone, evaluating
from perdure.models.examples import Batch
from perdure.models.logits import Logits


@dataclass(kw_only=True)
class LwF(PeftMethod):
    """Train one PEFT module on task after task, and distil the old heads' outputs on new examples.

    L = cross-entropy + strength · T² · mean over old heads of
    KL(softmax(z_old / T) ‖ softmax(z / T)), where z_old comes from the module and the heads as they
    were when the task began. The old heads are trained too, each towards its old outputs. No old
    examples are stored.

    Parameters
    ----------
    strength
        λ_o, the weight of T² times the mean over old heads. In the paper, λ_o is the weight of the
        sum over old heads, without T².
    temperature
        The temperature T of the softmax.

    References
    ----------
    Li & Hoiem, Learning without Forgetting, arXiv 1606.09282. There the old outputs are recorded
    once; here they are computed at each step, which is equivalent if there is no augmentation, and
    works for any examples. The paper's first stage, which trains only the new head, is omitted.
    Old heads are trained with the learning rate of the module, not that of the new head.
    """

    usual_rule = "last"
    tuned = Tuned("strength", 1e-1, 1e2)

    strength: Annotated[float, Ge(0)] = 1.0
    temperature: Annotated[float, Gt(0)] = 2.0

    def begin(self, backbone: Backbone, task: Task) -> None:
        """Copy the module and the heads, which become the teacher."""
        # Before the module is attached: without heads, only this reveals the first task.
        is_first = not adapters.attached(backbone.model)
        self.go_on(backbone)
        self._old = self._old_answerers(
            backbone,
            task,
            is_first,
        )
        # Only trained parameters are copied: teacher and student share the frozen backbone.
        trained = {id(parameter) for parameter in self.parameters(backbone)}
        self._teacher: dict[str, Tensor] = {}
        for name, parameter in backbone.named_parameters():
            if id(parameter) not in trained:
                continue
            key = f"backbone.{name}"  # its name in `_Answers`
            self._teacher[key] = parameter.detach().clone()

    def parameters(self, backbone: Backbone) -> list[nn.Parameter]:
        """Return the parameters of the module and of the old heads."""
        parameters = list(adapters.trainable(backbone.model).values())
        for name in self._old:
            if name:
                parameters += backbone.own(name).parameters()
        return parameters

    def loss(self, backbone: Backbone, batch: Batch) -> Tensor:
        hidden = backbone(batch)
        loss = backbone.losses(batch, hidden).mean()
        if not self._old or not self.strength:
            return loss
        # One pass of the student serves all heads; the teacher's module needs a separate pass.
        teachers = self._teacher_answers(backbone, batch)
        distances = []
        pairs = zip(self._old, teachers, strict=True)
        for head, teacher in pairs:
            student = backbone.read(hidden, batch, head)
            distance = student.distance(teacher, self.temperature)
            distances.append(distance)
        # T² compensates for the gradients of softened outputs, which shrink with 1 / T².
        factor = self.strength * self.temperature**2
        return loss + factor * torch.stack(distances).mean()

    @torch.no_grad()
    def _teacher_answers(self, backbone: Backbone, batch: Batch) -> list[Logits]:
        """Return the outputs of the old heads, using the parameters from the start of the task."""
        with evaluating(backbone):  # a teacher with dropout would be noisy
            return functional_call(
                _Answers(backbone),
                self._teacher,
                (batch, self._old),
                # Tasks that share a head have one parameter under several names. Tied, torch would
                # put the teacher's values back in place of the student's after the call.
                tie_weights=False,
            )

    def _old_answerers(self, backbone: Backbone, task: Task, is_first: bool) -> list[str | None]:
        """Return the names of the heads whose outputs are distilled.

        For a model without heads, the list is `[None]` from the second task on.
        """
        if backbone.heads or is_first:
            return [name for name in backbone.heads if name != task.name]
        return [None]


class _Answers(nn.Module):
    """A module that returns the outputs of several heads.

    `functional_call` calls it with the teacher's parameters.
    """

    def __init__(self, backbone: Backbone):
        super().__init__()
        self.backbone = backbone

    def forward(self, batch: Batch, heads: Sequence[str | None]) -> list[Logits]:
        hidden = self.backbone(batch)
        return [self.backbone.read(hidden, batch, head) for head in heads]
