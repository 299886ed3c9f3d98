"""Bayesian gradient descent (Zeno et al. 2018): each weight's step size is its variance."""

from dataclasses import dataclass

from torch import Tensor

from perdure.learning.method import Group
from perdure.methods.parts.bayes_method import BayesMethod
from perdure.methods.parts.bayes_optimizer import BayesOptimizer, Sigmas


@dataclass(kw_only=True)
class BGD(BayesMethod):
    """Train one PEFT module on task after task, with smaller steps for certain weights.

    Each parameter has a Gaussian distribution N(μ, σ²). A step makes K passes, each with
    a sample θ = μ + σ ε, whose gradient is g. It uses ḡ, the mean of g over the passes,
    and h̄, the mean of g ε. Here, g is the gradient of the sum of losses over a batch:
    the number of examples in a step times the gradient of the mean loss.

    μ ← μ − η (σ / σ_0)^p ḡ;  σ ← σ √(1 + (σ h̄ / 2)²) − σ² h̄ / 2

    Here, p is 2. σ falls where the curvature of the loss is positive. The model answers
    with μ. The method does not need to know where a task ends.

    η is `learning_rate`, or `head_learning_rate` for heads. It is constant, and there is
    no weight decay. `max_grad_norm` clips ḡ, but not h̄, because the curvature would then
    be underestimated. With `training.best`, μ is that of the best epoch, but σ is
    that of the last one.

    References
    ----------
    Zeno, Golan, Hoffer & Soudry, Task Agnostic Continual Learning Using Online
    Variational Bayes, arXiv 1803.10123. The published step is η σ² ḡ with η = 1. There are
    no bounds and no clipping there, and σ_0 is between 0.01 and 0.05. The settings for
    that are `lr_normalise: false`, `min_sigma: null`, `max_sigma: null`, and, in
    `training`, `learning_rate: 1`, `head_learning_rate: 1` and `max_grad_norm: .inf`.
    """

    def make(self, groups: list[Group], sigmas: Sigmas, examples: int) -> BayesOptimizer:
        return Descent(groups, sigmas, examples=examples)


class Descent(BayesOptimizer):
    """The optimizer of BGD, whose step follows the gradient."""

    def direction(self, gradient: Tensor, state: dict[str, Tensor], group: Group) -> Tensor:
        return gradient
