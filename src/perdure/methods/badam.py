"""Bayesian adaptive moment regularization (2023): Adam with steps scaled by variances."""

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
    """Train one PEFT module on task after task by Adam, with smaller steps for certain weights.

    Each parameter has a Gaussian distribution N(μ, σ²). A step makes K passes, each with
    a sample θ = μ + σ ε, whose gradient is g. It uses ḡ, the mean of g over the passes,
    and h̄, the mean of g ε. Here, g is the gradient of the sum of losses over a batch:
    the number of examples in a step times the gradient of the mean loss.

    m ← β_1 m + (1 − β_1) ḡ;  v ← β_2 v + (1 − β_2) ḡ²

    μ ← μ − η (σ / σ_0)^p · √(1 − β_2^t) / (1 − β_1^t) · m / (√v + 1e-10)

    σ ← σ √(1 + (σ h̄ / 2)²) − σ² h̄ / 2

    Here, p is 2. σ falls where the curvature of the loss is positive. The model answers
    with μ. The method does not need to know where a task ends: σ, m, v and t carry over
    to the next task.

    η is `learning_rate`, or `head_learning_rate` for heads. It is constant, and there is
    no weight decay. `max_grad_norm` clips ḡ, but not h̄, because the curvature would then
    be underestimated. With `training.best`, μ is that of the best epoch, but the
    rest is that of the last one.

    Parameters
    ----------
    beta1, beta2
        The decay rates of m and v.

    References
    ----------
    Bayesian Adaptive Moment Regularization, arXiv 2309.08546. The published step has σ²
    in place of (σ / σ_0)^p, with no bounds and no clipping. The settings for that are
    `lr_normalise: false`, `min_sigma: null`, `max_sigma: null`, and, in `training`,
    `max_grad_norm: .inf`. For Split MNIST, η is 0.01 and σ_0 is 0.011 there. The first
    step of a weight is then only 1.2e-6. On synthetic data, σ diverged with these
    values, while `sigma_power: 1` trained well.
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
        # Steps are counted per parameter, because the moments of a new head start at zero.
        t = state["step"].item()
        correction = math.sqrt(1 - beta2**t) / (1 - beta1**t)
        return correction * m / (v.sqrt() + TINY)
