"""Elastic weight consolidation (Kirkpatrick et al. 2017): protect what earlier tasks need."""

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
    """Train one PEFT module on task after task, with a penalty on changes to weights that mattered
    to earlier tasks.

    L = cross-entropy + strength / 2 · Σ_i F_i (θ_i − θ*_i)². The sum is over the module's
    parameters; heads are not penalised. F is the diagonal of the Fisher information,
    computed from per-example gradients. With `memory: online`, decay · F_i replaces F_i.

    Parameters
    ----------
    strength
        λ. A suitable value depends on the size of F, so it needs tuning.
    memory
        `offline`: one penalty for each task, as published. Their sum is equivalent to one
        penalty with ΣF and the F-weighted mean of the θ*, so the state does not grow with
        the number of tasks. `online`: F ← decay · F + F_t, around the last task's θ*.
    decay
        γ, used with `online`: the factor by which the remembered F is multiplied when a
        task is added. As published, the penalty is multiplied by it too.
    labels
        The labels for computing F: `sampled` from p(y | x), in one pass over the
        examples; `true` (all labels, weighted by p(y | x), with a backward pass for
        each); or `empirical` (the correct labels).

    References
    ----------
    Kirkpatrick et al., Overcoming catastrophic forgetting in neural networks, arXiv
    1612.00796; online: Schwarz et al., Progress & Compress, arXiv 1805.06370.
    """

    usual_rule = "last"
    tuned = Tuned("strength", 1e1, 1e6)

    strength: Annotated[float, Ge(0)] = 1000.0
    memory: Literal["offline", "online"] = "offline"
    decay: Annotated[float, Gt(0), Le(1)] = 0.9
    labels: Labels = "sampled"

    @property
    def needs(self) -> frozenset[Need]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The requirements of the method: with `labels: true`, classes and a head for each task.

        F is then a sum over all classes.
        """
        return frozenset({"classes", "heads"}) if self.labels == "true" else frozenset()

    @property
    def instead(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        return "Use `labels: sampled` or `labels: empirical`."

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
        # Progress & Compress has γ in the penalty too, not only in the update of F.
        strength = self.strength * self._decay
        return loss + strength / 2 * distance

    def end(self, backbone: Backbone, task: Task, optimizer: Optimizer) -> None:
        """Add the task's F and θ* to the penalty."""
        examples = backbone.encode(task.rows("train"))
        information = fisher(backbone, examples, self.labels)
        hold(
            self.state,
            adapters.trainable(backbone.model),
            information,
            decay=self._decay,
            weighted=self.memory == "offline",
        )

    @property
    def _decay(self) -> float:
        return self.decay if self.memory == "online" else 1.0
