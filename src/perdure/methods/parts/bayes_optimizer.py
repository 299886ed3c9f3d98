"""Optimizers of a mean-field Gaussian over the parameters.

    q(θ) = Π_i N(θ_i; μ_i, σ_i²)

References
----------
Zeno, Golan, Hoffer & Soudry, Task Agnostic Continual Learning Using Online Variational
Bayes, arXiv 1803.10123.
"""

import contextlib
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from perdure.errors import TrainingError
from perdure.learning.method import Group

DIVERGED = 100.0
"""A σ that exceeds its initial value by this factor has diverged."""


@dataclass(frozen=True, kw_only=True)
class Sigmas:
    """Settings for σ; `BayesMethod` describes them.

    `minimum` and `maximum` are absolute values, not multiples of `initial`.
    """

    initial: float
    power: int
    normalise: bool
    minimum: float | None
    maximum: float | None


class BayesOptimizer(Optimizer):
    """The base class of optimizers that learn the mean μ and the σ of each parameter.

    Outside of `sampled`, each parameter is its μ. A step needs one or more passes: inside
    `sampled`, the parameters are θ = μ + σ ε with ε ~ N(0, I), and a backward pass
    computes their gradient g. The step then uses ḡ, the sum of g over the passes, and h̄,
    the sum of g ε; losses should be divided by the number of passes, which makes both of
    them means:

        μ ← μ − η (σ / s)^p · direction(ḡ)
        σ ← σ √(1 + (σ h̄ / 2)²) − σ² h̄ / 2

    Both use the σ from before the step. s is the initial σ if `normalise` is set, and
    otherwise 1.

    The state of a parameter consists of σ (`sigma`), of the number of its steps (`step`)
    and of the tensors in `moments`. A parameter without a gradient is not changed.

    Parameters
    ----------
    groups
        Parameter groups, each with a learning rate `lr`, which is η.
    examples
        The factor of ḡ and h̄: the number of examples in a step. The loss is a mean over
        examples, but the posterior depends on the sum.
    """

    moments: ClassVar[tuple[str, ...]] = ()
    """The names of further tensors in the state of a parameter, which are zero at first."""

    def __init__(
        self, groups: list[Group], sigmas: Sigmas, *, examples: int, **settings: Any
    ) -> None:
        super().__init__(groups, {"examples": examples, **settings})
        self.sigmas = sigmas
        self.passes = 0
        self._products: dict[nn.Parameter, Tensor] = {}
        for mean in self.means():
            state = self.state[mean]
            state["sigma"] = torch.full_like(mean, sigmas.initial, requires_grad=False)
            # On the CPU, as in torch's Adam: reading it does not wait for the device.
            state["step"] = torch.zeros(())
            for name in self.moments:
                state[name] = torch.zeros_like(mean, requires_grad=False)

    @abstractmethod
    def direction(self, gradient: Tensor, state: dict[str, Tensor], group: Group) -> Tensor:
        """Return the direction of a parameter's step, and update the moments in `state`."""

    def means(self) -> list[nn.Parameter]:
        """Return the parameters of all groups."""
        means = []
        for group in self.param_groups:
            means += group["params"]
        return means

    def products(self) -> list[Tensor]:
        """Return h̄ / `examples` of each parameter that has a gradient."""
        products = []
        for mean in self.means():
            if mean.grad is not None:
                # With several processes, the gradient may come from the others only.
                products.append(self._products.setdefault(mean, torch.zeros_like(mean.grad)))
        return products

    @contextlib.contextmanager
    def sampled(self, seed: int) -> Iterator[None]:
        """Replace the parameters with a sample of q while the block runs; collect g and g ε.

        The seed determines the sample.
        """
        means = self.means()
        values = [mean.detach().clone() for mean in means]
        earlier = [mean.grad for mean in means]
        noise = self._noise(means, seed)
        for mean, epsilon in zip(means, noise, strict=True):
            mean.data.addcmul_(self.state[mean]["sigma"], epsilon)
            # Set aside, because the gradient of this pass alone is multiplied by ε.
            mean.grad = None
        try:
            yield
        finally:
            for mean, value, epsilon, before in zip(means, values, noise, earlier, strict=True):
                # A copy of the old value, because subtracting the noise would round.
                mean.data.copy_(value)
                self._collect(mean, epsilon, before)
            self.passes += 1

    def _noise(self, means: Sequence[Tensor], seed: int) -> list[Tensor]:
        """Return a standard normal sample for each parameter."""
        if not means:
            return []
        # One draw for all, because many small draws take longer.
        generator = torch.Generator(means[0].device).manual_seed(seed)
        sizes = [mean.numel() for mean in means]
        flat = torch.empty(sum(sizes), dtype=means[0].dtype, device=means[0].device)
        parts = flat.normal_(generator=generator).split(sizes)
        return [part.view_as(mean) for part, mean in zip(parts, means, strict=True)]

    def _collect(self, mean: nn.Parameter, epsilon: Tensor, earlier: Tensor | None) -> None:
        """Add g ε of a pass to the product of a parameter, and g to its earlier gradient."""
        gradient = mean.grad
        if gradient is None:
            mean.grad = earlier
            return
        if mean in self._products:
            self._products[mean].addcmul_(gradient, epsilon)
        else:
            self._products[mean] = gradient * epsilon
        if earlier is not None:
            gradient += earlier

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Take a step with the gradients collected in `sampled`.

        Raises
        ------
        TrainingError
            σ has diverged.
        """
        for group in self.param_groups:
            for mean in group["params"]:
                if mean.grad is not None:
                    self._step(mean, group)
        self._products.clear()
        self.passes = 0
        self._check()

    def _step(self, mean: nn.Parameter, group: Group) -> None:
        state = self.state[mean]
        sigma = state["sigma"]
        assert mean.grad is not None
        gradient = group["examples"] * mean.grad
        state["step"] += 1
        unit = self.sigmas.initial if self.sigmas.normalise else 1.0
        factor = (sigma / unit) ** self.sigmas.power
        mean -= group["lr"] * factor * self.direction(gradient, state, group)
        if mean in self._products:
            product = group["examples"] * self._products[mean]
            # √(1 + a²) − a = exp(−asinh a). The difference would be rounded to zero for a large a.
            sigma *= (-(sigma * product / 2).asinh()).exp()
            if self.sigmas.minimum is not None or self.sigmas.maximum is not None:
                sigma.clamp_(self.sigmas.minimum, self.sigmas.maximum)

    def _check(self) -> None:
        """Raise an error if σ has diverged."""
        largest = [self.state[mean]["sigma"].max() for mean in self.means()]
        if not largest:
            return
        value = torch.stack(largest).max().item()
        initial = self.sigmas.initial
        limit = DIVERGED * initial if self.sigmas.maximum is None else self.sigmas.maximum
        # A comparison with NaN, which `max` passes on, is false.
        if not value <= limit * (1 + 1e-6):
            raise TrainingError(
                f"The σ of a parameter has diverged: it is {value:g}, and was {initial:g} at "
                "first. Set `max_sigma` (2, for example), or lower `initial_sigma` or "
                "`learning_rate`."
            )
