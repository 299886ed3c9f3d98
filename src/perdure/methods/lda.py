"""Linear discriminant analysis on the frozen backbone: Gaussian classes of one covariance, from streaming sums."""

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
    """Answer with the most probable of Gaussian classes that share one covariance Σ; nothing is trained.

    The logit of class c is xᵀ Σ⁻¹ μ_c − μ_cᵀ Σ⁻¹ μ_c / 2 + log π_c. Σ is pooled over all tasks so far and shrunk, from
    sums that add up: the order of the tasks changes nothing, and no example is kept.

    Parameters
    ----------
    shrinkage
        s of (1 − s) Σ + s (trace Σ / d) I.

    References
    ----------
    Fisher 1936; streaming, on a deep backbone: Hayes & Kanan, Lifelong Machine Learning with Deep Streaming Linear
    Discriminant Analysis, arXiv 1909.01520 (without log π_c, and with another shrinkage).
    """

    tuned = Tuned("shrinkage", 1e-3, 1.0)

    shrinkage: Annotated[float, Gt(0), Le(1)] = 0.1

    def end(self, backbone: Backbone, task: Task, optimizer: Optimizer) -> None:
        """Take up the task's sums, and put all heads in place anew."""
        new, all_tasks = statistics_of(backbone, task), Accumulated(self.state)
        check_present(new, task)
        total = all_tasks.with_task(task.name, new)
        means = total.sums / total.counts[:, None]
        weight = torch.linalg.solve(
            within(total.counts, means, total.products, self.shrinkage), means.T
        ).T
        bias = (total.counts / total.counts.sum()).log() - 0.5 * (weight * means).sum(1)
        all_tasks.put_heads(backbone, weight, bias)
        self.state = all_tasks.state()
