"""Elastic weight consolidation (Kirkpatrick et al. 2017): one module, held back where earlier tasks need it."""

from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Le
from torch import Tensor
from torch.optim import Optimizer

from perdure.data.task import Task
from perdure.learning.method import Need, PeftMethod, Tuned
from perdure.methods.parts.anchor import hold, penalty
from perdure.methods.parts.fisher import Labels, fisher
from perdure.models import adapters
from perdure.models.backbone import Backbone
from perdure.models.examples import Batch


@dataclass(kw_only=True)
class EWC(PeftMethod):
    """Train the same PEFT module on one task after the other, with a penalty on what mattered to earlier ones.

    L = cross-entropy + strength / 2 · Σ_i F_i (θ_i − θ*_i)², over the module's parameters; a task's head is its own
    and is not held. F is the diagonal of the Fisher information, from gradients of each example by itself. With
    `memory: online` decay · F_i stands in the place of F_i.

    Parameters
    ----------
    strength
        λ. It goes with the size of F, and wants tuning.
    memory
        `offline`: one penalty for each task, as published. Their sum is one again, with ΣF and the mean of the θ* that
        F weighs, so that nothing grows with the tasks. `online`: F ← decay · F + F_t, around the last task's θ*.
    decay
        γ of `online`: of what is remembered when a task is added, and of the penalty as well, as published.
    labels
        Of F: `sampled` from p(y | x), one pass over the examples; `true` (all labels, weighted by p(y | x): a backward
        pass for each); or `empirical` (the right ones).

    References
    ----------
    Kirkpatrick et al., Overcoming catastrophic forgetting in neural networks, arXiv 1612.00796; online: Schwarz et al.,
    Progress & Compress, arXiv 1805.06370.
    """

    usual_rule = "last"
    tuned = Tuned("strength", 1e1, 1e6)

    strength: Annotated[float, Ge(0)] = 1000.0
    memory: Literal["offline", "online"] = "offline"
    decay: Annotated[float, Gt(0), Le(1)] = 0.9
    labels: Labels = "sampled"

    @property
    def needs(self) -> frozenset[Need]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Classes, if the Fisher information sums over all of them."""
        return frozenset({"classes"}) if self.labels == "true" else frozenset()

    def begin(self, backbone: Backbone, task: Task) -> None:
        self.go_on(backbone)

    def loss(self, backbone: Backbone, batch: Batch) -> Tensor:
        loss = backbone.losses(batch).mean()
        if not self.state:
            return loss
        strength = self.strength * self._decay
        return loss + strength / 2 * penalty(adapters.trainable(backbone.model), self.state)

    def end(self, backbone: Backbone, task: Task, optimizer: Optimizer) -> None:
        """Add the task's F and θ* to what is remembered."""
        new = fisher(backbone, backbone.encode(task.rows("train")), self.labels)
        offline = self.memory == "offline"
        hold(
            self.state, adapters.trainable(backbone.model), new, decay=self._decay, weighted=offline
        )

    @property
    def _decay(self) -> float:
        return self.decay if self.memory == "online" else 1.0
