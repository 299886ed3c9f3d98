"""Learning without forgetting (Li & Hoiem 2016): old heads keep their outputs on new data."""

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
    """Train one PEFT module on task after task, and distil the old heads' answers to new examples.

    L = cross-entropy + strength · T² · mean over old heads of
    KL(softmax(z_old / T) ‖ softmax(z / T)), with z_old from the module and heads as they were
    when the task began. The old heads are trained too, each by its own answers; no old example
    is kept.

    Parameters
    ----------
    strength
        λ_o, the weight of the mean over old heads with T². In the paper it weighs their sum,
        without T².
    temperature
        T.

    References
    ----------
    Li & Hoiem, Learning without Forgetting, arXiv 1606.09282. There the old answers are
    recorded once; here they are computed at each step, which is the same without
    augmentation, and works for any examples. Its first stage, the new head alone, is left
    out. Old heads are trained with the module's learning rate, not the new head's.
    """

    usual_rule = "last"
    tuned = Tuned("strength", 1e-1, 1e2)

    strength: Annotated[float, Ge(0)] = 1.0
    temperature: Annotated[float, Gt(0)] = 2.0

    def begin(self, backbone: Backbone, task: Task) -> None:
        """Keep a copy of the module and the heads as the teacher."""
        # Before the module is attached: without heads, only it tells the first task from others.
        is_first = not adapters.attached(backbone.model)
        self.go_on(backbone)
        self._old = self._old_answerers(
            backbone,
            task,
            is_first,
        )
        # Only what is trained is copied: teacher and student share the frozen backbone.
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
        # One pass of the student serves all heads; the teacher's module needs a pass of its own.
        teachers = self._teacher_answers(backbone, batch)
        distances = []
        pairs = zip(self._old, teachers, strict=True)
        for head, teacher in pairs:
            student = backbone.read(hidden, batch, head)
            distance = student.distance(teacher, self.temperature)
            distances.append(distance)
        # T² makes up for the gradients of softened answers, which shrink with 1 / T².
        factor = self.strength * self.temperature**2
        return loss + factor * torch.stack(distances).mean()

    @torch.no_grad()
    def _teacher_answers(self, backbone: Backbone, batch: Batch) -> list[Logits]:
        """Return the answers of the old heads as they were when the task began."""
        with evaluating(backbone):  # a teacher with dropout would be noise
            return functional_call(
                _Answers(backbone),
                self._teacher,
                (batch, self._old),
                # Tasks that share a head have one parameter under several names. Tied, torch would
                # put the teacher's values back in place of the student's after the call.
                tie_weights=False,
            )

    def _old_answerers(self, backbone: Backbone, task: Task, is_first: bool) -> list[str | None]:
        """Return the heads whose answers are distilled.

        In a model without heads the key is `None`.
        """
        if backbone.heads or is_first:
            return [name for name in backbone.heads if name != task.name]
        return [None]


class _Answers(nn.Module):
    """The answers of several heads as one module, to be called with other parameters."""

    def __init__(self, backbone: Backbone):
        super().__init__()
        self.backbone = backbone

    def forward(self, batch: Batch, heads: Sequence[str | None]) -> list[Logits]:
        hidden = self.backbone(batch)
        return [self.backbone.read(hidden, batch, head) for head in heads]
