"""Learning without forgetting (Li & Hoiem 2016): preserve the outputs of old heads on new data."""

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from annotated_types import Ge, Gt
from jaxtyping import Bool, Float
from torch import Tensor, nn

from perdure.data.task import Task
from perdure.learning.method import PeftMethod, Tuned
from perdure.methods.parts.conflict import opposing
from perdure.methods.parts.teacher import as_teacher, copied
from perdure.models import adapters
from perdure.models.backbone import Backbone
from perdure.models.examples import Batch
from perdure.models.logits import Logits


@dataclass(kw_only=True)
class LwF(PeftMethod):
    """Train one PEFT module on task after task, and distil the old heads' outputs on new examples.

    L = cross-entropy + strength · T² · mean over old heads of KL(softmax(z_old / T) ‖
    softmax(z / T)), where z_old comes from the module and the heads as they were when the
    task began. The old heads are trained too, each towards its old outputs. No old
    examples are stored.

    Parameters
    ----------
    strength
        λ_o, the weight of T² times the mean over old heads. In the paper, λ_o is the
        weight of the sum over old heads, without T².
    temperature
        The temperature T of the softmax.
    conflict
        `keep`: distil every example of the batch. `drop`: omit the distillation of an
        example of the new task if its gradient opposes that of the cross-entropy, that
        is, if their inner product is negative. For an encoder, the gradients are those
        with respect to the pooled feature of the example; for a language model, with
        respect to the logits at each predicted token, so the decision is made for each
        token. Old examples, which `replay` adds, are always distilled. None, the default,
        means `keep`.

    References
    ----------
    Li & Hoiem, Learning without Forgetting, arXiv 1606.09282. There the old outputs are recorded
    once; here they are computed at each step, which is equivalent if there is no augmentation, and
    works for any examples. The paper's first stage, which trains only the new head, is omitted.
    Old heads are trained with the learning rate of the module, not that of the new head.

    `conflict: drop` is an ingredient that the abstract of Han, Na & Hwang, Selective
    Regularization for Class-Incremental Learning (SRIL), arXiv 2305.05175, describes in
    words: it lets the gradients of both losses decide between "pattern completion"
    (distil) and "pattern separation" (do not). The body of the paper was not available,
    so this is not an implementation of SRIL.
    """

    usual_rule = "last"
    tuned = Tuned("strength", 1e-1, 1e2)

    strength: Annotated[float, Ge(0)] = 1.0
    temperature: Annotated[float, Gt(0)] = 2.0
    conflict: Literal["keep", "drop"] | None = None

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
        self._teacher = copied(backbone, self.parameters(backbone))
        self._task = task.name

    def parameters(self, backbone: Backbone) -> list[nn.Parameter]:
        """Return the parameters of the module and of the old heads."""
        parameters = list(adapters.trainable(backbone.model).values())
        for name in self._old:
            if name:
                parameters += backbone.own(name).parameters()
        return parameters

    def loss(self, backbone: Backbone, batch: Batch) -> Tensor:
        hidden = backbone(batch)
        losses = backbone.losses(batch, hidden)
        if not self._old or not self.strength:
            return losses.mean()
        # One pass of the student serves all heads; the teacher's module needs a separate pass.
        teachers = as_teacher(backbone, self._teacher, lambda: self._answers(backbone, batch))
        students = self._answers(backbone, batch, hidden)
        if self.conflict == "drop":
            distance = self._without_conflict(hidden, losses, batch, students, teachers)
        else:
            pairs = zip(students, teachers, strict=True)
            distances = [one.distance(teacher, self.temperature) for one, teacher in pairs]
            distance = torch.stack(distances).mean()
        # T² compensates for the gradients of softened outputs, which shrink with 1 / T².
        return losses.mean() + self.strength * self.temperature**2 * distance

    def _answers(
        self, backbone: Backbone, batch: Batch, hidden: Tensor | None = None
    ) -> list[Logits]:
        """Return the outputs of the old heads, computed from `hidden` if it is given."""
        output = backbone(batch) if hidden is None else hidden
        return [backbone.read(output, batch, head) for head in self._old]

    def _without_conflict(
        self,
        hidden: Tensor,
        losses: Float[Tensor, " batch"],
        batch: Batch,
        students: list[Logits],
        teachers: list[Logits],
    ) -> Float[Tensor, ""]:
        """Return the mean distance over examples and heads, counting dropped places as 0."""
        pairs = zip(students, teachers, strict=True)
        distances = [one.distances(teacher, self.temperature) for one, teacher in pairs]
        mean = torch.stack(distances).mean(0)
        # The outputs of one head are in the order of `hidden`, one place for each of its rows.
        is_old = self._is_old(batch, students[0].rows)
        dropped = opposing(losses, mean, hidden) & ~is_old
        return students[0].per_example(mean.masked_fill(dropped, 0.0)).mean()

    def _is_old(self, batch: Batch, rows: Tensor) -> Bool[Tensor, " places"]:
        """Return True for each place that belongs to an example of an earlier task."""
        examples = [task != self._task for task in batch.tasks]
        return torch.tensor(examples, device=rows.device)[rows]

    def _old_answerers(self, backbone: Backbone, task: Task, is_first: bool) -> list[str | None]:
        """Return the names of the heads whose outputs are distilled.

        For a model without heads, the list is `[None]` from the second task on.
        """
        if backbone.heads or is_first:
            return [name for name in backbone.heads if name != task.name]
        return [None]
