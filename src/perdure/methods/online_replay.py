"""Online replay: mixup, distillation at several depths, and a look-ahead step."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Annotated, ClassVar

import numpy as np
import torch
from annotated_types import Ge, Lt
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.optim import Optimizer

from perdure.data.exemplars import Exemplars
from perdure.data.task import Rows, Task
from perdure.errors import InputError
from perdure.learning import engine
from perdure.learning.method import PeftMethod, Tuned
from perdure.methods.parts.depths import blocks_at, distance_at_depths, run_watched
from perdure.methods.parts.lookahead import add_gradient_ahead
from perdure.methods.parts.mixup import Pairs, beta
from perdure.methods.parts.reservoir import add_sample
from perdure.methods.parts.teacher import as_teacher, copied
from perdure.models import adapters
from perdure.models.backbone import Backbone
from perdure.models.examples import Batch


@dataclass(kw_only=True)
class OnlineReplay(PeftMethod):
    """Train one PEFT module in one pass over each task, with four aids against forgetting.

    The aids are replay from a reservoir, mixup of new and old examples, distillation of
    hidden states, and a look-ahead step that is judged by examples held out of the batch.
    All but replay can be switched off. Use `training: {epochs: 1}` for a single pass over
    the stream.

    In each batch, one stored example is drawn for each new one. The loss is λ ·
    cross-entropy(new) + (1 − λ) · cross-entropy(old) + distillation · distance.

    Parameters
    ----------
    memory
        The maximum number of stored examples, a uniform sample of all examples of earlier
        tasks. It is updated after each task, so examples of the current task are not
        replayed.
    mixup
        The parameter a of λ ~ Beta(a, a), drawn once for each batch; 0 for λ = ½ without
        mixing. What is mixed with the weights λ and 1 − λ depends on the model: for
        images, the pixels; for text encoders, the pooled features, because a mixture of
        tokens is not a text; for language models, only the losses, because answers differ
        in length.
    distillation
        The weight of the distance between the hidden states of the model and those of the
        model as it was when the task began; 0 to switch it off. At each depth, the states
        of all tokens are scaled to unit length, and the mean of their squared distances
        is taken.
    depths
        The number of evenly spaced transformer blocks at which hidden states are
        distilled, from the last one down.
    held_out
        The fraction of each batch that is held out; 0 to switch it off. The gradient of
        its loss is computed at θ − inner_rate · g, where g is the gradient of the rest,
        and added to g.
    inner_rate
        The size of that step. With 0, the gradient is that of the loss of the entire
        batch.

    References
    ----------
    The abstract of Han & Liu (MMKDDA), arXiv 2209.06107, names these parts: multi-scale
    distillation, mixing with an episodic memory, and a meta-learning update. The body of
    the paper was not available, so this is not an implementation of it. Mixup: Zhang et
    al., arXiv 1710.09412; the held-out step: first-order MLDG, Li et al., arXiv
    1710.03463.
    """

    usual_rule: ClassVar[str] = "last"
    tuned: ClassVar[Tuned | None] = Tuned("distillation", 1e-1, 1e2)

    memory: Annotated[int, Ge(1)] = 200
    mixup: Annotated[float, Ge(0)] = 0.4
    distillation: Annotated[float, Ge(0)] = 1.0
    depths: Annotated[int, Ge(1)] = 3
    held_out: Annotated[float, Ge(0), Lt(1)] = 0.25
    inner_rate: Annotated[float, Ge(0)] = 0.01
    _seen: list[str] = field(default_factory=list, init=False, repr=False)
    _old: Rows = field(default_factory=list, init=False, repr=False)

    @property
    def store_bytes(self) -> int:
        """The size of the stored examples in bytes."""
        return Exemplars.of(self.state).size

    def begin(self, backbone: Backbone, task: Task) -> None:
        """Copy the module, which becomes the teacher from the second task on."""
        if engine.count() > 1:
            raise InputError(
                "`online_replay` runs in one process: several would draw other old examples for "
                "the same batch. Start it without `accelerate launch` or `torchrun`."
            )
        is_first = not adapters.attached(backbone.model)
        self.go_on(backbone)
        distils = self.distillation > 0 and not is_first
        module = adapters.trainable(backbone.model).values()
        self._teacher = copied(backbone, module) if distils else {}
        self._blocks = blocks_at(backbone, self.depths) if distils else []
        # For each batch of the current step: the loss of its held-out examples, to be
        # computed after the trial step, and the size of the batch.
        self._ahead: list[tuple[Callable[[], Tensor], int]] = []

    def parameters(self, backbone: Backbone) -> list[nn.Parameter]:
        """Return the parameters of the module and of the heads of stored examples."""
        parameters = list(adapters.trainable(backbone.model).values())
        for of_task in self._old:
            parameters += backbone.own(of_task.task).parameters()
        return list(dict.fromkeys(parameters))  # tasks may share a head

    def examples(self, seen: Sequence[Task]) -> Rows:
        # The stored examples are not among the rows: each batch draws from them separately.
        self._seen = [task.name for task in seen[:-1] if task.name != seen[-1].name]
        old = {task.name: task.classes for task in seen if task.name in self._seen}
        self._old = Exemplars.of(self.state).rows(old)
        return seen[-1].rows("train")

    def loss(self, backbone: Backbone, batch: Batch) -> Tensor:
        pairs = self._draw(backbone, batch)
        losses, distance = self._losses(backbone, pairs)
        is_tested = self._hold_out(len(losses)).to(losses.device)
        loss = losses[~is_tested].sum() / len(losses) + self.distillation * distance
        if not is_tested.any():
            return loss
        autocast = torch.is_autocast_enabled(losses.device.type)

        def ahead() -> Tensor:
            with torch.autocast(losses.device.type, dtype=torch.bfloat16, enabled=autocast):
                again, _ = self._losses(backbone, pairs, distil=False)
            return again[is_tested].sum()

        self._ahead.append((ahead, len(losses)))
        # Only for the value in the log: `update` adds the gradient of the held-out examples.
        return loss + losses[is_tested].detach().sum() / len(losses)

    def update(self, backbone: Backbone, step: Callable[[], None]) -> None:
        """Add the gradient of the held-out examples, and take a step."""
        ahead, self._ahead = self._ahead, []
        examples = sum(size for _, size in ahead)
        losses = [lambda loss=loss: loss() / examples for loss, _ in ahead]
        if losses:
            trained = [one for one in backbone.parameters() if one.requires_grad]
            add_gradient_ahead(trained, self.inner_rate, losses)
        step()

    def _draw(self, backbone: Backbone, batch: Batch) -> Pairs:
        """Draw an old example for each new one, and the weight of the new ones."""
        if not self._old:
            return Pairs(batch)
        kept = backbone.encode(self._old)
        chosen = torch.randint(len(kept), (len(batch),)).tolist()
        share = beta(self.mixup) if self.mixup else 0.5
        return Pairs(batch, kept.batch(chosen, backbone.device), share, mixes=self.mixup > 0)

    def _hold_out(self, size: int) -> Bool[Tensor, " batch"]:
        """Choose the examples to hold out: at least one, but not all, of two or more."""
        is_tested = torch.zeros(size, dtype=torch.bool)
        if self.held_out and size > 1:
            count = min(max(1, round(self.held_out * size)), size - 1)
            is_tested[torch.randperm(size)[:count]] = True
        return is_tested

    def _losses(
        self, backbone: Backbone, pairs: Pairs, *, distil: bool = True
    ) -> tuple[Float[Tensor, " batch"], Float[Tensor, ""]]:
        """Return the loss of each pair, and the distance to the teacher's states."""
        outputs, distances = [], []
        for batch in pairs.inputs(backbone):
            output, states = run_watched(backbone, batch, self._blocks)
            outputs.append(output)
            if distil and self._teacher:
                distances.append(distance_at_depths(states, self._before(backbone, batch)))
        losses = pairs.losses(backbone, outputs)
        return losses, torch.stack(distances).mean() if distances else losses.new_zeros(())

    def _before(self, backbone: Backbone, batch: Batch) -> list[Tensor]:
        """Return the hidden states of the model as it was when the task began."""
        return as_teacher(
            backbone, self._teacher, lambda: run_watched(backbone, batch, self._blocks)[1]
        )

    def end(self, backbone: Backbone, task: Task, optimizer: Optimizer) -> None:
        self.foresee(task)

    def foresee(self, task: Task) -> None:
        """Add examples of the task to the reservoir."""
        kept = Exemplars.of(self.state).of_tasks(self._seen)
        # The loop has set torch's seed for this task's end: a resumed run draws the same examples.
        random = np.random.default_rng(torch.initial_seed())
        add_sample(kept, task, len(task.train), self.memory, random)
        self.state = kept.state()
