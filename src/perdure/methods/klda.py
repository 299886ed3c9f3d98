"""KLDA (Momeni et al. 2024): discriminant analysis on random Fourier features."""

from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Ge, Gt, Le
from jaxtyping import Float
from torch import Tensor

from perdure.data.task import Task
from perdure.errors import RunError, TrainingError
from perdure.learning.method import Tuned
from perdure.methods.parts.discriminant import discriminant
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


@dataclass(kw_only=True)
class KLDA(FrozenMethod):
    """Classify with Gaussian classes in the space of a Gaussian kernel; nothing is trained.

    The feature vector x, scaled to unit length, becomes z = √(2/D) cos(Wᵀx + b), where
    the entries of W are drawn from N(0, 2γ) and those of b uniformly from [0, 2π]. The
    product zᵀz' then approximates the kernel exp(−γ ‖x − x'‖²). The logits are those of
    linear discriminant analysis on z, computed from running sums as in `lda`. For a given
    γ, the order of the tasks therefore does not matter, and no examples are stored.

    γ = q / δ, where q is the bandwidth and δ the mean squared distance between the
    training examples of the first task. For vectors of unit length, δ = 2 (1 − ‖mean of
    x‖²). γ is chosen at the first task and never changes, even if that task is forgotten.

    The default bandwidth and shrinkage were chosen on held-out training examples of
    CLINC150 (MiniLM, 20 examples per class). There a bandwidth of 1 or more was worse.

    Parameters
    ----------
    features
        D, the length of z. The state contains a matrix of D² numbers of 8 bytes each.
    bandwidth
        The q in γ = q / δ. Larger values make the kernel narrower.
    shrinkage
        The s in (1 − s) Σ + s (trace Σ / D) I, where Σ is the covariance that all classes
        share.

    References
    ----------
    Momeni et al., Continual Learning Using a Kernel-Based Method Over Foundation Models,
    arXiv 2412.15571. The public code adds a constant to the sum of squares instead of the
    shrinkage, so its regularisation fades as examples are added. Random Fourier features:
    Rahimi & Recht, Random Features for Large-Scale Kernel Machines, NIPS 2007.
    """

    tuned = Tuned("bandwidth", 0.03, 3.0)

    features: Annotated[int, Ge(1), Le(heads.MOST_FEATURES)] = 2000
    bandwidth: Annotated[float, Gt(0)] = 0.25
    shrinkage: Annotated[float, Gt(0), Le(1)] = 0.1

    def begin(self, backbone: Backbone, task: Task) -> None:
        super().begin(backbone, task)
        choose_seed(self.state)

    def compute_heads(self, backbone: Backbone, task: Task) -> None:
        """Add the sums of the task, and recompute all heads, because they share Σ."""
        seed = saved_seed(self.state)
        all_tasks = Accumulated(self.state)
        x = features_of(backbone, task, normalise=True)
        # γ is computed from x itself, so its values are checked here and not only those of z.
        check_present(statistics_of(backbone, task, x), task)
        gamma = self._gamma(x, task)

        W, b = heads.fourier(seed, backbone.width, self.features, gamma)
        z = heads.fourier_features(x, W, b)
        total = all_tasks.with_task(task.name, statistics_of(backbone, task, z))
        weight, bias = discriminant(total, self.shrinkage)
        # Every head stores the seed and γ, from which the model recomputes W and b.
        more = {
            heads.SEED: torch.tensor(seed),
            heads.GAMMA: torch.tensor(gamma),
        }
        all_tasks.put_heads(backbone, weight, bias, more)
        self.state = {
            **all_tasks.state(),
            "seed": seed,
            "gamma": gamma,
        }

    def _gamma(self, x: Float[Tensor, "examples width"], task: Task) -> float:
        """Return the γ saved in the run or, for the first task, choose it.

        Raises
        ------
        RunError
            The saved γ is damaged.
        TrainingError
            All examples have the same features, so every distance is zero.
        """
        if "gamma" in self.state:
            saved = self.state["gamma"]
            if not heads.is_gamma(saved):
                raise RunError(f"The γ saved in the run is damaged ({saved!r}).")
            return saved
        mean = x.double().mean(0)
        distance = 2 * (1 - mean.square().sum())
        # Below this, the distance is a rounding error of features in single precision.
        if distance < 1e-6:
            raise TrainingError(
                f"Task `{task.name}`: the features of all training examples are equal, so "
                "the width of the kernel cannot be chosen. Check the examples and the "
                "model's weights."
            )
        # In single precision, as it is stored in the heads.
        return (self.bandwidth / distance).float().item()
