"""Bayesian adaptive moment regularization (2023): Adam whose steps shrink with the variance."""

import math
from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge, Lt
from torch import Tensor

from perdure.learning.method import Group
from perdure.methods.parts.bayes_method import BayesMethod
from perdure.methods.parts.bayes_optimizer import BayesOptimizer, Sigmas

TINY = 1e-10
"""Added to √v, as in the authors' code."""


@dataclass(kw_only=True)
class BAdam(BayesMethod):
    """Train one PEFT module on task after task with Adam, where certain weights move less.

    Each parameter is Gaussian, N(μ, σ²). A step makes K passes, each with a sample
    θ = μ + σ ε, and computes ḡ, the mean of g over passes, and h̄, the mean of g ε. Here g is the
    gradient of the sum of losses over a batch, that is, the number of examples in a step times the
    gradient of the mean.

    m ← β_1 m + (1 − β_1) ḡ;  v ← β_2 v + (1 − β_2) ḡ²

    μ ← μ − η (σ / σ_0)² · √(1 − β_2^t) / (1 − β_1^t) · m / (√v + 1e-10)

    σ ← σ √(1 + (σ h̄ / 2)²) − σ² h̄ / 2

    σ falls where the curvature of the loss is positive. The model answers with μ. The method does
    not need to know where a task ends: σ, m, v and t carry over to the next one.

    η is `learning_rate`, for heads `head_learning_rate`; warm-up, schedule and weight decay do not
    apply. `max_grad_norm` clips the mean gradient in ḡ, but not in h̄, since that would
    underestimate the curvature. With `training.best`, μ is that of the best epoch, but the rest is
    that of the last one.

    Parameters
    ----------
    beta1, beta2
        The decay rates of m and v.

    References
    ----------
    Bayesian Adaptive Moment Regularization, arXiv 2309.08546. The published step is that above
    with σ² instead of (σ / σ_0)², σ without bounds, and no clipping: `lr_normalise: false`,
    `min_sigma: null`, `max_sigma: null`, and `max_grad_norm: .inf` in `training`. For Split MNIST,
    η is 0.01 and σ_0 is 0.011 there. With these values and σ², the first step of a weight is only
    1.2e-6, and σ diverged on synthetic data, while a σ to the power of 1 trained well
    (`sigma_power: 1`).
    """

    beta1: Annotated[float, Ge(0), Lt(1)] = 0.9
    beta2: Annotated[float, Ge(0), Lt(1)] = 0.999

    def make(self, groups: list[Group], sigmas: Sigmas, examples: int) -> BayesOptimizer:
        return Moments(groups, sigmas, examples=examples, beta1=self.beta1, beta2=self.beta2)


class Moments(BayesOptimizer):
    """The optimizer of BAdam, whose step follows Adam's direction.

    The parameter groups have the settings `beta1` and `beta2`.
    """

    moments = ("m", "v")

    def direction(self, gradient: Tensor, state: dict[str, Tensor], group: Group) -> Tensor:
        beta1, beta2 = group["beta1"], group["beta2"]
        m, v = state["m"], state["v"]
        m.mul_(beta1).add_(gradient, alpha=1 - beta1)
        v.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        # Steps are counted separately for each parameter, because the moments of a new head are new.
        t = state["step"].item()
        correction = math.sqrt(1 - beta2**t) / (1 - beta1**t)
        return correction * m / (v.sqrt() + TINY)
