"""EWC-LoRA (2026) and ELLA (2026): protect the weights themselves, not LoRA's factors."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Literal

import torch
from annotated_types import Ge, Gt, Le
from jaxtyping import Float
from torch import Tensor
from torch.optim import Optimizer

from perdure.data.task import Task
from perdure.errors import InputError
from perdure.learning.method import Need, PeftMethod, Tuned
from perdure.merging.combine import task_vectors
from perdure.methods.parts.fisher import Labels
from perdure.methods.parts.weight_fisher import weight_fisher
from perdure.models import adapters
from perdure.models.adapters import Adapter
from perdure.models.backbone import Backbone
from perdure.models.examples import Batch
from perdure.vectors.task_vector import total

PREFIX = "importance/"
"""The state contains Ω of each layer as `importance/LAYER`."""


@dataclass(kw_only=True)
class WeightSpace(PeftMethod):
    """Train a fresh LoRA on top of the frozen earlier ones, with a penalty on changes of weights
    that mattered to earlier tasks.

    L = cross-entropy + strength / 2 · Σ over layers of Σ_ij Ω_ij (ΔW_ij)², where ΔW =
    alpha / rank · B A is the change by the new branch. Ω has the shape of the weight, so
    it takes 4 · d_out · d_in bytes per layer, whatever the rank and the number of tasks.
    The model is the sum of the products B A.

    Parameters
    ----------
    strength
        λ. A suitable value depends on the size of Ω, so it needs tuning.
    importance
        The definition of Ω. `fisher` (EWC-LoRA): after each task, Ω ← decay · Ω + F,
        where F_ij is the mean over its examples of (∂ log p / ∂ΔW_ij)²; the Ω of all
        layers is saved with each task. `past` (ELLA): Ω = (Σ_{j<t} ΔW_j)², which needs no
        pass over the data. It is computed from the branches, so nothing is saved.
    decay
        γ, used with `fisher`: the factor by which Ω is multiplied when a task is added.
    labels
        The labels for computing F, used with `fisher`: `empirical` (the correct ones, as
        published), `sampled` from p(y | x), or `true` (all labels, weighted by p(y | x)).

    References
    ----------
    EWC-LoRA, arXiv 2602.17559, whose code squares the mean gradient of a batch and multiplies it
    by the batch size; the gradients here are those of single examples. That code also adds A and B
    of the new branch to the earlier ones, which changes the model by products that were never
    trained. ELLA, arXiv 2601.02232, whose λ is half of `strength`, because its penalty has no
    factor ½. Neither includes alpha / rank.
    """

    usual_rule = "sum"
    lora_because = "protects the weights to which LoRA adds a product"
    tuned = Tuned("strength", 1e2, 1e7)

    strength: Annotated[float, Ge(0)] = 1e4
    importance: Literal["fisher", "past"] = "fisher"
    decay: Annotated[float, Gt(0), Le(1)] = 1.0
    labels: Labels = "empirical"
    # Both are set before each task, in a resumed run too.
    _earlier: Sequence[Adapter] = field(default=(), init=False, repr=False)
    _omega: dict[str, Tensor] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self):
        super().__post_init__()
        if self.importance == "past" and (self.decay != 1 or self.labels != "empirical"):
            raise InputError(
                "`decay` and `labels` of `weight_space` are used only with `importance: fisher`: "
                "leave them out."
            )

    @property
    def needs(self) -> frozenset[Need]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The requirements of the method: LoRA, and with `labels: true` classes and heads.

        F is then a sum over all classes.
        """
        if self.labels == "true":
            return frozenset({"lora", "classes", "heads"})
        return frozenset({"lora"})

    @property
    def instead(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        return "Use `labels: sampled` or `labels: empirical`."

    def beneath(self, earlier: Sequence[Adapter]) -> Sequence[Adapter]:
        self._earlier = earlier
        return earlier

    def begin(self, backbone: Backbone, task: Task) -> None:
        """Attach the new branch, and prepare Ω on the device of the model."""
        self.attach(backbone)
        omega = self._past() if self.importance == "past" else self._remembered()
        self._omega = {name: value.to(backbone.device) for name, value in omega.items()}

    def loss(self, backbone: Backbone, batch: Batch) -> Tensor:
        loss = backbone.losses(batch).mean()
        if not self._omega or not self.strength:  # the first task has nothing to protect
            return loss
        return loss + self.strength / 2 * self.penalty(backbone)

    def penalty(self, backbone: Backbone) -> Float[Tensor, ""]:
        """Return Σ Ω ⊙ (ΔW)² over all layers."""
        terms = []
        # Autocast would multiply in bfloat16, which is too coarse for entries close to zero.
        with torch.autocast(backbone.device.type, enabled=False):
            for name, (A, B) in adapters.factors(backbone.model).items():
                product = B @ A
                weighted = self._omega[name] * product.square()
                terms.append(weighted.sum())
            return torch.stack(terms).sum() * (self.alpha / self.rank) ** 2

    def end(self, backbone: Backbone, task: Task, optimizer: Optimizer) -> None:
        """Add the task's F to Ω."""
        self._omega = {}  # twice Ω would stay in memory otherwise
        if self.importance == "past":
            return
        examples = backbone.encode(task.rows("train"))
        before = self._remembered()
        for name, information in weight_fisher(backbone, examples, self.labels).items():
            if name in before:
                information += self.decay * before[name].cpu()
            self.state[f"{PREFIX}{name}"] = information

    def _remembered(self) -> dict[str, Float[Tensor, "out in"]]:
        """Return the Ω in the state, by layer."""
        omega = {}
        for key, value in self.state.items():
            omega[key.removeprefix(PREFIX)] = value
        return omega

    def _past(self) -> dict[str, Float[Tensor, "out in"]]:
        """Return the squares of what the earlier branches change, by layer."""
        vectors = task_vectors(self._earlier)
        past = total(list(vectors.values()))
        return {name: past.dense(name).square() for name, _ in past.items()}
