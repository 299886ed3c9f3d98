"""Linear discriminant analysis on the frozen backbone, from streaming sums over features."""

from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Gt, Le
from torch.optim import Optimizer

from perdure.data.task import Task
from perdure.learning.method import Tuned
from perdure.methods.parts.frozen import Accumulated, FrozenMethod, check_present, statistics_of
from perdure.models.backbone import Backbone
from perdure.vectors.statistics import within


@dataclass(kw_only=True)
class LDA(FrozenMethod):
    """Answer with the most probable of Gaussian classes that share one covariance Σ, untrained.

    The logit of class c is xᵀ Σ⁻¹ μ_c − μ_cᵀ Σ⁻¹ μ_c / 2 + log π_c. Σ is pooled over all
    tasks so far and shrunk, from sums that add up: the order of the tasks does not matter,
    and no example is kept.

    Parameters
    ----------
    shrinkage
        s of (1 − s) Σ + s (trace Σ / d) I.

    References
    ----------
    Fisher 1936; streaming, on a deep backbone: Hayes & Kanan, Lifelong Machine Learning with
    Deep Streaming Linear Discriminant Analysis, arXiv 1909.01520 (without log π_c, and with
    another shrinkage).
    """

    tuned = Tuned("shrinkage", 1e-3, 1.0)

    shrinkage: Annotated[float, Gt(0), Le(1)] = 0.1

    def end(self, backbone: Backbone, task: Task, optimizer: Optimizer) -> None:
        """Add the task's sums, and compute the heads of all tasks anew: they share Σ."""
        all_tasks = Accumulated(self.state)
        new = statistics_of(backbone, task)
        check_present(new, task)
        total = all_tasks.with_task(task.name, new)

        # One covariance of all tasks' classes: an old head changes when a task is added.
        means = total.sums / total.counts[:, None]
        covariance = within(
            total.counts,
            means,
            total.products,
            self.shrinkage,
        )
        # Each row of the classifier is Σ⁻¹ μ_c: solving is more exact than the inverse.
        columns = torch.linalg.solve(covariance, means.T)
        weight = columns.T
        priors = total.counts / total.counts.sum()
        squares = (weight * means).sum(1)  # μ_cᵀ Σ⁻¹ μ_c
        bias = priors.log() - 0.5 * squares
        all_tasks.put_heads(backbone, weight, bias)
        self.state = all_tasks.state()
