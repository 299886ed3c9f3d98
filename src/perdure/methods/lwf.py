"""Learning without forgetting (Li & Hoiem 2016): on new data, the old heads are to answer as they did before."""

from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Ge, Gt
from torch import Tensor, nn

from perdure.data.task import Task
from perdure.learning.method import PeftMethod, Tuned, local_cross_entropy
from perdure.models import adapters
from perdure.models.backbone import Backbone, Batch, evaluating


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
        self.go_on(backbone)
        self._old = [name for name in backbone.head_names if name != task.name]
        kept = {f"model.{name}": value for name, value in adapters.trainable(backbone.model).items()}
        self._teacher = {name: value.detach().clone() for name, value in kept.items()}
        self._heads = {name: [p.detach().clone() for p in backbone.head(name).parameters()] for name in self._old}

    def parameters(self, backbone: Backbone) -> list[nn.Parameter]:
        """The module, and the old heads."""
        heads = [p for name in self._old for p in backbone.head(name).parameters()]
        return [*adapters.trainable(backbone.model).values(), *heads]

    def loss(self, backbone: Backbone, batch: Batch) -> Tensor:
        now = backbone(batch["inputs"])
        loss = local_cross_entropy(backbone, batch, now)
        if not self._old or not self.strength:
            return loss
        with torch.no_grad(), evaluating(backbone):
            before = torch.func.functional_call(backbone, self._teacher, (batch["inputs"],))
        parts = []
        for name in self._old:
            wanted = nn.functional.linear(before, *self._heads[name]) / self.temperature
            answer = backbone.head(name)(now) / self.temperature
            parts.append(nn.functional.kl_div(answer.log_softmax(1), wanted.log_softmax(1), log_target=True,
                                              reduction="batchmean"))  # fmt: skip
        return loss + self.strength * self.temperature**2 * torch.stack(parts).mean()
