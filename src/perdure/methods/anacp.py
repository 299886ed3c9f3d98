"""AnaCP (Momeni & Liu 2025): a contrastive projection of frozen features in closed form."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch
from annotated_types import Ge, Gt, Le, Lt
from jaxtyping import Float, Int
from torch import Tensor, linalg

from perdure.data.task import Task
from perdure.learning.method import Tuned
from perdure.methods.parts.frozen import (
    Accumulated,
    FrozenMethod,
    check_present,
    choose_seed,
    features_of,
    saved_seed,
    statistics_of,
)
from perdure.models import heads
from perdure.models.backbone import Backbone
from perdure.seeds import derived
from perdure.vectors.statistics import Statistics, within


@dataclass(kw_only=True)
class AnaCP(FrozenMethod):
    """Project features to where classes lie apart, and classify there; nothing is trained.

    The feature vector x, scaled to unit length, is lifted several times to random features
    z_h = GELU(x P_h), and projected to p, the mean over h of z_h θ_h / ‖z_h θ_h‖. The
    matrix θ_h is the ridge regression of z_h on the target of each example's class. Targets
    are the class means μ_c, moved apart:

        t_c = m + (w_c + u_c) Σ^(−1/2), scaled to unit length,   w_c = (μ_c − m) Σ^(−1/2),

    where Σ is the covariance that all classes share, m the mean of the μ_c, and the u_c are
    the rows of the matrix with orthonormal columns that is closest to that of the w_c.

    The logits are the ridge regression of h = GELU(p Q) on the classes, one-hot; the P_h and
    Q are random. Since p is not linear in z_h, sums of h cannot be carried from task to task.
    So the regression is fitted to points drawn from N(μ_c, Σ), equally many for each class.
    Everything else is computed from running sums of x and z_h. Therefore the order of the
    tasks does not matter, and no examples are stored.

    The default ridge and number of draws were chosen on CLINC150's validation examples
    (MiniLM, 20 and 100 examples per class).

    Parameters
    ----------
    features
        The length of each z_h, and of h.
    lifts
        The number of lifts. The state contains a matrix of features² numbers of 8 bytes
        for each of them.
    ridge
        The r in (1 − r) G + r (trace G / features) I, which replaces G = Σ z zᵀ in the
        regression for θ_h, and G = Σ h hᵀ in the one for the logits.
    shrinkage
        The s in (1 − s) Σ + s (trace Σ / d) I, which replaces Σ.
    draws
        The number of points that are drawn for each class.

    References
    ----------
    Momeni & Liu, AnaCP: Toward Upper-Bound Continual Learning via Analytic Contrastive
    Projection, arXiv 2511.13880. The public code adds a constant to G, so its regularisation
    fades as examples are added, and spreads classes along singular vectors whose singular
    value is zero, which are arbitrary.
    """

    tuned = Tuned("ridge", 0.001, 0.1)

    features: Annotated[int, Ge(1), Le(heads.MOST_FEATURES)] = 1000
    lifts: Annotated[int, Ge(1)] = 3
    ridge: Annotated[float, Gt(0), Lt(1)] = 0.01
    shrinkage: Annotated[float, Gt(0), Le(1)] = 0.1
    draws: Annotated[int, Ge(2)] = 100

    def begin(self, backbone: Backbone, task: Task) -> None:
        super().begin(backbone, task)
        choose_seed(self.state)

    def compute_heads(self, backbone: Backbone, task: Task) -> None:
        """Add the sums of the task, and recompute θ and the heads of all tasks."""
        seed = saved_seed(self.state)
        x = features_of(backbone, task, normalise=True)
        all_tasks = Accumulated(self.state)
        new = statistics_of(backbone, task, x)
        check_present(new, task)
        total = all_tasks.with_task(task.name, new)
        means = total.sums / total.counts[:, None]
        covariance = within(total.counts, means, total.products, self.shrinkage)
        targets = spread(means, covariance)

        P, Q = heads.contrastive_matrices(seed, backbone.width, self.lifts, self.features)
        z = heads.gelu_features(x, P, self.lifts)
        state = {"seed": seed, **all_tasks.state()}
        thetas = []
        for number in range(self.lifts):
            lifted = Accumulated(self.state, prefix=f"lift{number}_")
            new = statistics_of(backbone, task, z[:, number])
            sums = lifted.with_task(task.name, new)
            thetas.append(self._regression(sums, targets))
            state |= lifted.state()
        # In single precision, as it is stored in the heads.
        theta = torch.stack(thetas).float()

        drawn = no_statistics(len(means), self.features)
        for points, groups in self._draws(all_tasks.sizes, means, covariance, seed):
            p = heads.contrastive(heads.gelu_features(points, P, self.lifts), theta)
            h = torch.nn.functional.gelu(p @ Q)
            drawn += Statistics.of(h, groups, len(means))
        weight = self._regression(drawn, torch.eye(len(means)).double()).T
        # Every head stores the seed, from which the model recomputes P and Q.
        more = {heads.SEED: torch.tensor(seed), heads.THETA: theta}
        all_tasks.put_heads(backbone, weight, torch.zeros(len(weight)), more)
        self.state = state

    def _regression(
        self,
        statistics: Statistics,
        targets: Float[Tensor, "classes outputs"],
    ) -> Float[Tensor, "features outputs"]:
        """Return the ridge regression of features on the targets of their classes."""
        G = statistics.products
        sphere = G.trace() / len(G) * torch.eye(len(G), dtype=torch.double)
        regular = (1 - self.ridge) * G + self.ridge * sphere
        return linalg.solve(regular, statistics.sums.T @ targets)

    def _draws(
        self,
        sizes: list[tuple[str, int]],
        means: Float[Tensor, "classes width"],
        covariance: Float[Tensor, "width width"],
        seed: int,
    ) -> Iterator[tuple[Float[Tensor, "points width"], Int[Tensor, " points"]]]:
        """Yield points drawn around the class means, and their classes, for each task."""
        width = len(covariance)
        L = linalg.cholesky(covariance)
        first = 0
        for name, size in sizes:
            # Seeded by the task's name, so that the order of the tasks does not matter.
            generator = np.random.RandomState(derived(seed, name, "draws"))
            noise = torch.from_numpy(generator.standard_normal((size * self.draws, width)))
            groups = torch.arange(first, first + size).repeat_interleave(self.draws)
            points = means[groups] + noise @ L.T
            yield points.float(), groups
            first += size


def no_statistics(groups: int, features: int) -> Statistics:
    """Return the statistics of no examples, to which others are added."""
    return Statistics(
        counts=torch.zeros(groups).double(),
        sums=torch.zeros(groups, features).double(),
        products=torch.zeros(features, features).double(),
    )


def spread(
    means: Float[Tensor, "classes width"],
    covariance: Float[Tensor, "width width"],
) -> Float[Tensor, "classes width"]:
    """Return the targets t_c of the classes with the given means and shared covariance."""
    values, vectors = linalg.eigh(covariance)
    whitening = (vectors / values.sqrt()) @ vectors.T  # Σ^(−1/2)
    centre = means.mean(0)
    U, S, Vh = linalg.svd((means - centre) @ whitening, full_matrices=False)
    # The centred means have fewer dimensions than classes: zero up to rounding errors.
    negligible = 1e-6 * S[0] >= S
    S = torch.where(negligible, 0, S + 1)
    return heads.unit_norm((U * S) @ Vh @ whitening + centre)
