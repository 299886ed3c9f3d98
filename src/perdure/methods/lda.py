"""Linear discriminant analysis on the frozen backbone, computed from running sums of features."""

from dataclasses import dataclass
from typing import Annotated

from annotated_types import Gt, Le

from perdure.data.task import Task
from perdure.learning.method import Tuned
from perdure.methods.parts.discriminant import discriminant
from perdure.methods.parts.frozen import (
    Accumulated,
    FrozenMethod,
    check_present,
    features_of,
    statistics_of,
)
from perdure.models import heads
from perdure.models.backbone import Backbone


@dataclass(kw_only=True)
class LDA(FrozenMethod):
    """Classify with Gaussian classes that share one covariance Σ; nothing is trained.

    The logit of class c is xᵀ Σ⁻¹ μ_c − μ_cᵀ Σ⁻¹ μ_c / 2 + log π_c. Σ is pooled over all
    tasks so far and shrunk. It is computed from running sums, so the order of the tasks
    does not matter and no examples are stored.

    Parameters
    ----------
    shrinkage
        The s in (1 − s) Σ + s (trace Σ / d) I.
    normalise
        Scale each feature vector x to unit length.

    References
    ----------
    Fisher 1936. For streams of data, on a deep backbone: Hayes & Kanan, Lifelong Machine Learning
    with Deep Streaming Linear Discriminant Analysis, arXiv 1909.01520 (without log π_c, and with
    a different shrinkage).
    """

    tuned = Tuned("shrinkage", 1e-3, 1.0)

    shrinkage: Annotated[float, Gt(0), Le(1)] = 0.1
    normalise: bool = False

    def compute_heads(self, backbone: Backbone, task: Task) -> None:
        """Add the sums of the task, and recompute the heads of all tasks, because they share Σ."""
        all_tasks = Accumulated(self.state)
        features = features_of(backbone, task, normalise=self.normalise)
        new = statistics_of(backbone, task, features)
        check_present(new, task)
        total = all_tasks.with_task(task.name, new)

        # The classes of all tasks share one covariance, so an old head changes with every new task.
        weight, bias = discriminant(total, self.shrinkage)
        all_tasks.put_heads(
            backbone,
            weight,
            bias,
            more=heads.UNIT_NORM if self.normalise else None,
        )
        self.state = all_tasks.state()
