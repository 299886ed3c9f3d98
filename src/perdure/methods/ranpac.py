"""RanPAC (McDonnell et al. 2023): ridge regression on random features of the frozen backbone."""

from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Ge, Le
from torch import Tensor

from perdure.data.task import Split, Task
from perdure.methods.parts.frozen import (
    Accumulated,
    FrozenMethod,
    choose_seed,
    features_of,
    saved_seed,
    statistics_of,
)
from perdure.models import heads
from perdure.models.backbone import Backbone
from perdure.vectors.statistics import Statistics

RIDGES = tuple(10.0**n for n in range(-8, 9))
"""The values of λ to try."""


@dataclass(kw_only=True)
class RanPAC(FrozenMethod):
    """Answer by ridge regression on random features of the frozen backbone; nothing is trained.

    The logits are V h with h = max(0, x P), P random, and V = Q (G + λ I)⁻¹. G = Σ h hᵀ
    and Q = Σ y hᵀ (y one-hot over all classes) are sums over the examples of all tasks.
    For a given λ, V is therefore the regression on all tasks together, in any order, and
    no examples are stored. After each task, λ is chosen from 10⁻⁸ … 10⁸ by the squared
    error on the new task's validation examples.

    Parameters
    ----------
    features
        The length of h. The state contains a matrix of features² numbers of 8 bytes each.
        The paper uses 10,000 features.
    normalise
        Scale each feature vector x to unit length.

    References
    ----------
    McDonnell et al., RanPAC: Random Projections and Pre-trained Models for Continual Learning,
    arXiv 2307.02251. There λ is chosen on a fifth of the new task's training examples. The paper's
    first stage, PEFT on the first task, is `adapt: first`.
    """

    features: Annotated[int, Ge(1), Le(heads.MOST_FEATURES)] = 2000
    normalise: bool = False

    def begin(self, backbone: Backbone, task: Task) -> None:
        super().begin(backbone, task)
        choose_seed(self.state)

    def compute_heads(self, backbone: Backbone, task: Task) -> None:
        """Add the sums of the task, choose λ, and recompute the heads of all tasks."""
        seed = saved_seed(self.state)
        all_tasks = Accumulated(self.state)
        h = self._features(backbone, task, "train", seed)
        new = statistics_of(backbone, task, h)
        total = all_tasks.with_task(task.name, new)

        # One decomposition G = U diag(values) Uᵀ serves every λ: V = Q U diag(1 / (values + λ)) Uᵀ.
        values, U = torch.linalg.eigh(total.products)
        # With fewer examples than features, some eigenvalues are zero up to rounding errors.
        values = values.clamp_min(0)
        rotated = total.sums @ U
        held_out = self._features(backbone, task, "validation", seed)
        ridge = self._best_ridge(
            rotated,
            values,
            held_out @ U,
            self._one_hot(backbone, task, total),
        )
        scaled = rotated / (values + ridge)
        V = scaled @ U.T
        # Every head stores the seed, from which the model recomputes P.
        more = {heads.SEED: torch.tensor(seed)}
        if self.normalise:
            more |= heads.UNIT_NORM
        all_tasks.put_heads(
            backbone,
            weight=V,
            bias=torch.zeros(len(V)),
            more=more,
        )
        self.state = {
            **all_tasks.state(),
            "seed": seed,
            "ridge": ridge,
        }

    def _best_ridge(self, Q: Tensor, values: Tensor, h: Tensor, y: Tensor) -> float:
        """Return the λ with the smallest squared error on features h with targets y.

        Q and h are in the basis of the eigenvectors whose eigenvalues are `values`.
        """

        def error(ridge: float) -> float:
            scaled = Q / (values + ridge)
            difference = h @ scaled.T - y
            return difference.square().mean().item()

        return min(RIDGES, key=error)

    def _one_hot(self, backbone: Backbone, task: Task, total: Statistics) -> Tensor:
        """Return the labels of the task's validation examples, one-hot over all tasks' classes."""
        classes = len(total.counts)
        labels = torch.tensor(backbone.encode(task.rows("validation")).labels)
        # The classes of the latest task are the last ones.
        labels = labels + classes - len(task.classes)
        return torch.nn.functional.one_hot(labels, classes).double()

    def _features(self, backbone: Backbone, task: Task, split: Split, seed: int) -> Tensor:
        """Return h of each example, in double precision."""
        x = features_of(backbone, task, split, normalise=self.normalise)
        P = heads.projection(seed, backbone.width, self.features)
        return torch.relu(x @ P).double()
