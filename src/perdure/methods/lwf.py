"""Learning without forgetting (Li & Hoiem 2016): on new data, the old heads are to answer as they did before."""

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
    """Train the same PEFT module on one task after the other, and distil the old heads' answers to the new examples.

    L = cross-entropy + strength · T² · mean over old heads of KL(softmax(z_old / T) ‖ softmax(z / T)), z_old by the
    module and heads as they were when the task began. The old heads are trained with it, each by its own answers; no
    old example is kept.

    Parameters
    ----------
    strength
        λ_o, of the mean over old heads with T². In the paper it is of their sum, without T².
    temperature
        T.

    References
    ----------
    Li & Hoiem, Learning without Forgetting, arXiv 1606.09282. There the old answers are recorded once; here they are
    computed at each step, which is the same without augmentation and lets the examples be any. Its first stage, the new
    head alone, is left out. Old heads are trained with the module's learning rate, not the new head's.
    """

    usual_rule = "last"
    tuned = Tuned("strength", 1e-1, 1e2)

    strength: Annotated[float, Ge(0)] = 1.0
    temperature: Annotated[float, Gt(0)] = 2.0

    def begin(self, backbone: Backbone, task: Task) -> None:
        """Keep module and heads as they are now: they are the teacher."""
        is_first = not adapters.attached(backbone.model)
        self.go_on(backbone)
        self._old = self._old_answerers(backbone, task, is_first)
        trained = {id(parameter) for parameter in self.parameters(backbone)}
        self._teacher = {
            f"backbone.{name}": parameter.detach().clone()
            for name, parameter in backbone.named_parameters()
            if id(parameter) in trained
        }

    def parameters(self, backbone: Backbone) -> list[nn.Parameter]:
        """The module, and the old heads."""
        heads = [p for name in self._old if name for p in backbone.own(name).parameters()]
        return [*adapters.trainable(backbone.model).values(), *heads]

    def loss(self, backbone: Backbone, batch: Batch) -> Tensor:
        hidden = backbone(batch)
        loss = backbone.losses(batch, hidden).mean()
        if not self._old or not self.strength:
            return loss
        students = [backbone.read(hidden, batch, head) for head in self._old]
        with torch.no_grad(), evaluating(backbone):
            # not by all names: a head that tasks share would be put back as what stood in its place
            teachers = functional_call(
                _Answers(backbone), self._teacher, (batch, self._old), tie_weights=False
            )
        pairs = zip(students, teachers, strict=True)
        distances = [student.distance(teacher, self.temperature) for student, teacher in pairs]
        return loss + self.strength * self.temperature**2 * torch.stack(distances).mean()

    def _old_answerers(self, backbone: Backbone, task: Task, is_first: bool) -> list[str | None]:
        """Whose answers are distilled: the old heads, or the one answerer of a model without heads."""
        if backbone.heads or is_first:
            return [name for name in backbone.heads if name != task.name]
        return [None]


class _Answers(nn.Module):
    """The answers of several heads as one module, so that it can be called with the teacher's parameters."""

    def __init__(self, backbone: Backbone):
        super().__init__()
        self.backbone = backbone

    def forward(self, batch: Batch, heads: Sequence[str | None]) -> list[Logits]:
        hidden = self.backbone(batch)
        return [self.backbone.read(hidden, batch, head) for head in heads]
