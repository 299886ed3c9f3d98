"""Interpolation with the previous weights if confidence on old examples falls."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated

import numpy as np
import torch
from annotated_types import Ge, Gt, Lt
from torch import Tensor, nn
from torch.optim import Optimizer

from perdure.data import exemplars
from perdure.data.exemplars import Exemplars
from perdure.data.task import Rows, Task
from perdure.errors import InputError
from perdure.learning import engine
from perdure.learning.method import method_name
from perdure.learning.wrapper import Wrapper, chain
from perdure.models import adapters
from perdure.models.backbone import Backbone, evaluating
from perdure.models.examples import in_order


@dataclass(kw_only=True)
class Interpolation(Wrapper):
    """Learn with another method, and interpolate with the previous weights if confidence falls.

    At the end of a task, θ ← keep · θ + (1 − keep) · θ_prev if the mean confidence on
    stored examples of earlier tasks is lower than before the task by more than `margin`;
    otherwise θ stays as it is. Confidence is the probability of the correct answer, given
    the task; for a language model, it is the geometric mean over the tokens of the
    answer. θ_prev are the weights from the beginning of the task. θ contains the module
    and the heads of earlier tasks, but not the head of the new task, which did not
    exist before. The stored examples are not trained on.

    With LoRA and bottlenecks, the factors are interpolated. A mixture of two changes of
    the weights has up to twice their rank, so the change is not exactly between both,
    except with `peft: full`.

    Parameters
    ----------
    method
        The inner method, such as `sequential`, `lwf` or `ewc`, which train one module
        further. If the method adds a branch for each task, the new branch shrinks.
        `replay` can be the inner method too, but stores its examples separately.
    keep
        The weight of the new values, between 0 and 1.
    margin
        The largest drop in mean confidence that is accepted.
    per_class
        The number of examples to store for each class, or for each task if answers are
        free text, drawn at random.

    References
    ----------
    The abstract of Han, Na & Hwang, Selective Regularization for Class-Incremental
    Learning (SRIL), arXiv 2305.05175, names "selective interpolation with the previous
    model's weights", depending on the model's confidence. The body of the paper was not
    available, so this is not an implementation of SRIL.
    """

    keep: Annotated[float, Gt(0), Lt(1)] = 0.5
    margin: Annotated[float, Ge(0), Lt(1)] = 0.05
    per_class: Annotated[int, Ge(1)] = 20
    _seen: list[str] = field(default_factory=list, init=False, repr=False)
    _old: Rows = field(default_factory=list, init=False, repr=False)

    def __post_init__(self):
        inner = self.method
        if inner.computes_heads or inner.keeps_all or inner.isolates:
            raise InputError(
                f"`interpolation` cannot be used around `{method_name(inner)}`: it needs a "
                "method that trains one module further, without the data of old tasks. "
                "Use `sequential`, `lwf` or `ewc`."
            )
        if "slow_adapter" in map(method_name, chain(inner)):
            raise InputError(
                "`interpolation` cannot be used around `slow_adapter`, which would replace the "
                "interpolated weights by its mean: use `slow_adapter` around `interpolation`."
            )

    @property
    def store_bytes(self) -> int:
        """The size of the stored examples in bytes, including the inner method's."""
        return Exemplars.of(self.remembered).size + self.method.store_bytes

    def begin(self, backbone: Backbone, task: Task) -> None:
        """Copy the module and the heads of earlier tasks, for interpolation in `end`."""
        super().begin(backbone, task)
        parameters = list(adapters.trainable(backbone.model).values())
        for name in backbone.heads:
            if name != task.name:
                parameters += backbone.own(name).parameters()
        self._previous: dict[nn.Parameter, Tensor] = {}
        for parameter in parameters:
            self._previous[parameter] = parameter.detach().clone()

    def examples(self, seen: Sequence[Task]) -> Rows:
        """Return the rows of the inner method."""
        earlier = [task for task in seen if task.name != seen[-1].name]
        self._seen = [task.name for task in earlier]
        self._old = Exemplars.of(self.remembered).rows({one.name: one.classes for one in earlier})
        return super().examples(seen)

    @torch.no_grad()
    def end(self, backbone: Backbone, task: Task, optimizer: Optimizer) -> None:
        """Interpolate if necessary, and store examples of the task."""
        if self._old:
            self._go_back_if_unsure(backbone)
        with torch.enable_grad():
            super().end(backbone, task, optimizer)
        kept = Exemplars.of(self.remembered).of_tasks(self._seen)
        # The loop has set torch's seed for this task's end: a resumed run draws the same examples.
        random = np.random.default_rng(torch.initial_seed())
        labels = backbone.encode(task.rows("train")).labels
        kept.add(task, exemplars.balanced(labels, self.per_class, random))
        self.remembered = kept.state()

    def _go_back_if_unsure(self, backbone: Backbone) -> None:
        """Interpolate if the confidence fell by more than the margin."""
        after = confidence(backbone, self._old)
        trained = {parameter: parameter.clone() for parameter in self._previous}
        for parameter, value in self._previous.items():
            parameter.copy_(value)
        drop = torch.tensor(confidence(backbone, self._old) - after, device=backbone.device)
        # Rounding may differ between processes, but their decisions must not.
        engine.as_the_first([drop])
        fell = drop.item() > self.margin
        for parameter, value in trained.items():
            # `lerp` returns equal values unchanged, so what was not trained stays as it is.
            parameter.copy_(parameter.lerp(value, self.keep) if fell else value)


@torch.no_grad()
def confidence(backbone: Backbone, rows: Rows) -> float:
    """Return the mean probability of the correct answer, without dropout."""
    examples = backbone.encode(rows)
    with evaluating(backbone):
        batches = examples.batches(device=backbone.device)
        results = in_order(
            (numbers, backbone.losses(batch).neg().exp().cpu()) for numbers, batch in batches
        )
    return results.double().mean().item()
