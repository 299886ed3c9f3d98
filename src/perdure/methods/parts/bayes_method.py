"""The base class of methods that train with a `BayesOptimizer`, without task boundaries."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal

import torch
from annotated_types import Ge, Gt, Le
from torch import nn
from torch.optim import Optimizer

from perdure.data.task import Task
from perdure.errors import InputError
from perdure.learning import engine
from perdure.learning.method import Group, PeftMethod, Tuned
from perdure.learning.training import Training
from perdure.methods.parts.bayes_optimizer import BayesOptimizer, Sigmas
from perdure.models.backbone import Backbone
from perdure.seeds import derived


@dataclass(kw_only=True)
class BayesMethod(PeftMethod):
    """A method that learns a Gaussian over one PEFT module and the heads, from task to task.

    Nothing happens between two tasks: σ and the moments of the optimizer carry over in
    the state. A parameter that is new, such as the head of a new task, starts with the
    initial σ.

    Parameters
    ----------
    samples
        K, the number of forward and backward passes in a step, each with a new sample of
        the parameters. A step takes about K times as long as with other methods.
    initial_sigma
        σ_0, the initial standard deviation of each parameter.
    sigma_power
        p, the power of σ in the step of μ: 2 as published, or 1.
    lr_normalise
        Divide σ by σ_0 in the step of μ, so that the learning rate has its usual meaning
        while σ = σ_0. As published, with `false`, the rate is multiplied by σ_0² too;
        with a small σ_0, a parameter then hardly moves, unless the rate is very high.
    min_sigma, max_sigma
        The bounds of σ, as multiples of σ_0. As published, there are none (`null`). But σ
        grows where the curvature of the loss is negative, and a larger σ makes the
        estimate of the curvature noisier; without `max_sigma`, σ can diverge, which is an
        error.
    """

    usual_rule: ClassVar[str] = "last"
    task_free: ClassVar[bool] = True
    tuned: ClassVar[Tuned | None] = Tuned("initial_sigma", 1e-3, 1e-1)

    samples: Annotated[int, Ge(1)] = 10
    initial_sigma: Annotated[float, Gt(0)] = 0.01
    sigma_power: Literal[1, 2] = 2
    lr_normalise: bool = True
    min_sigma: Annotated[float, Ge(0), Le(1)] | None = 1e-4
    max_sigma: Annotated[float, Ge(1)] | None = 2.0
    # Both are set before each task, in a resumed run too.
    _names: dict[nn.Parameter, list[str]] = field(default_factory=dict, init=False, repr=False)
    _optimizer: BayesOptimizer | None = field(default=None, init=False, repr=False)

    def __post_init__(self):
        super().__post_init__()
        if self.samples < 1:
            raise InputError(f"`samples` is {self.samples}, but a step needs at least 1 pass.")
        if not self.initial_sigma > 0:
            raise InputError(
                f"`initial_sigma` is {self.initial_sigma}, but a standard deviation must be more "
                "than 0."
            )

    def make(self, groups: list[Group], sigmas: Sigmas, examples: int) -> BayesOptimizer:
        """Return a new optimizer; `examples` is the number of examples in a step."""
        raise NotImplementedError

    # -- the hooks

    @property
    def passes(self) -> int:
        return self.samples

    @property
    def scheduled(self) -> bool:
        """False, because a schedule would start again with each task."""
        return False

    def begin(self, backbone: Backbone, task: Task) -> None:
        self.go_on(backbone)
        # The same seed for all tasks: the samples depend on the number of steps so far.
        self._seed = derived(torch.initial_seed(), "weights")
        self.state.setdefault("steps", 0)
        # Tasks may share a head, whose parameters then have several names.
        self._names = {}
        for name, parameter in backbone.named_parameters(remove_duplicate=False):
            self._names.setdefault(parameter, []).append(name)
        self._drop_old_heads(backbone, task)

    def _drop_old_heads(self, backbone: Backbone, task: Task) -> None:
        """Drop the state of removed heads, and of any old head of the new task."""
        names = {name for names in self._names.values() for name in names}
        for parameter in backbone.own(task.name).parameters():
            of_head = self._names[parameter]
            if len(of_head) == 1:  # no other task has this head, so it is new
                names -= set(of_head)
        for key in list(self.state):
            _, separator, name = key.partition("/")
            if separator and name not in names:
                del self.state[key]

    def optimizer(self, groups: list[Group], training: Training, *, examples: int) -> Optimizer:
        """Return the optimizer, with the state that the parameters have had so far."""
        initial = self.initial_sigma
        sigmas = Sigmas(
            initial=initial,
            power=self.sigma_power,
            normalise=self.lr_normalise,
            minimum=None if self.min_sigma is None else self.min_sigma * initial,
            maximum=None if self.max_sigma is None else self.max_sigma * initial,
        )
        in_step = min(examples, training.batch_size * training.gradient_accumulation)
        optimizer = self.make(groups, sigmas, in_step)
        for mean in optimizer.means():
            for key, value in optimizer.state[mean].items():
                for name in self._names[mean]:
                    if f"{key}/{name}" in self.state:
                        value.copy_(self.state[f"{key}/{name}"])
        self._optimizer = optimizer
        return optimizer

    def around(self, optimizer: Optimizer) -> AbstractContextManager[object]:
        """Return a context manager inside which the parameters are a sample."""
        assert isinstance(optimizer, BayesOptimizer)
        # Not torch's global seed: all processes, and all batches of a step, use the same samples.
        number = optimizer.passes % self.samples
        return optimizer.sampled(derived(self._seed, self.state["steps"], number))

    def update(self, backbone: Backbone, step: Callable[[], None]) -> None:
        assert self._optimizer is not None
        engine.add_up(self._optimizer.products())
        step()
        self.state["steps"] += 1

    def end(self, backbone: Backbone, task: Task, optimizer: Optimizer) -> None:
        """Store σ and the moments of the parameters that were trained."""
        assert isinstance(optimizer, BayesOptimizer)
        for mean in optimizer.means():
            names = self._names[mean]
            for key, value in optimizer.state[mean].items():
                # A shared head is stored under the name of the last task only: if an
                # earlier one is forgotten, its name goes.
                for name in names:
                    self.state.pop(f"{key}/{name}", None)
                self.state[f"{key}/{names[-1]}"] = value.detach().clone()
