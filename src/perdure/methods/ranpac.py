"""RanPAC (McDonnell et al. 2023): ridge regression on random features of the frozen backbone."""

from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Ge
from torch import Tensor
from torch.optim import Optimizer

from perdure.data.task import Split, Task
from perdure.methods.parts.frozen import Accumulated, FrozenMethod
from perdure.models import heads
from perdure.models.backbone import Backbone, pooled
from perdure.vectors.statistics import Statistics

RIDGES = tuple(10.0**n for n in range(-8, 9))


@dataclass(kw_only=True)
class RanPAC(FrozenMethod):
    """Answer by ridge regression on random features of the frozen backbone; nothing is trained.

    Logits are V h with h = max(0, x P), P random, and V = Q (G + λ I)⁻¹. G = Σ h hᵀ and Q = Σ y hᵀ (y one-hot over all
    classes) add up over examples and tasks, so for a given λ V is the regression on all of them at once, whatever the
    order; no example is kept. λ is, after each task, that of 10⁻⁸ … 10⁸ with the least squared error on the new task's
    validation examples.

    Parameters
    ----------
    features
        The length of h. What is kept is a matrix of features² numbers of 8 bytes; the paper takes 10,000.

    References
    ----------
    McDonnell et al., RanPAC: Random Projections and Pre-trained Models for Continual Learning, arXiv 2307.02251.
    There λ is found on a fifth of the new task's training examples; and the optional first stage, PEFT on the first
    task, is left out: the backbone is frozen from the beginning.
    """

    features: Annotated[int, Ge(1)] = 2000

    def begin(self, backbone: Backbone, task: Task) -> None:
        self.state.setdefault("seed", torch.initial_seed() % 2**32)  # the run's

    def end(self, backbone: Backbone, task: Task, optimizer: Optimizer) -> None:
        """Take up the task's sums, find λ, and put all heads in place anew."""
        seed, all_tasks = self.state["seed"], Accumulated(self.state)
        total = all_tasks.with_task(task.name, self._statistics(backbone, task, "train", seed))
        held_out = self._features(backbone, task, "validation", seed)
        labels = (
            torch.tensor(backbone.encode(task.rows("validation")).labels)
            + len(total.counts)
            - len(task.classes)
        )
        values, vectors = torch.linalg.eigh(total.products)  # once, for every λ
        values = values.clamp_min(
            0
        )  # of fewer examples than features some are zero, but for rounding
        Q, rotated = total.sums @ vectors, held_out @ vectors
        wanted = torch.nn.functional.one_hot(labels, len(total.counts)).double()

        def error(ridge: float) -> float:
            return (rotated @ (Q / (values + ridge)).T - wanted).square().mean().item()

        ridge = min(RIDGES, key=error)
        V = (Q / (values + ridge)) @ vectors.T
        all_tasks.put_heads(backbone, V, torch.zeros(len(V)), {heads.SEED: torch.tensor(seed)})
        self.state = {**all_tasks.state(), "seed": seed, "ridge": ridge}

    def _statistics(self, backbone: Backbone, task: Task, split: Split, seed: int) -> Statistics:
        labels = torch.tensor(backbone.encode(task.rows(split)).labels)
        return Statistics.of(self._features(backbone, task, split, seed), labels, len(task.classes))

    def _features(self, backbone: Backbone, task: Task, split: Split, seed: int) -> Tensor:
        """h of each example, in double precision."""
        x = pooled(backbone, backbone.encode(task.rows(split)))
        return torch.relu(x @ heads.projection(seed, backbone.width, self.features)).double()
