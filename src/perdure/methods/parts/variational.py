"""The base class of methods that learn a Gaussian posterior over the parameters, task by task."""

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from annotated_types import Ge, Gt
from torch import Tensor, nn
from torch.optim import Optimizer

from perdure.data.task import Rows, Task
from perdure.errors import InputError, RunError
from perdure.learning.method import Group, PeftMethod, Tuned
from perdure.learning.training import Training
from perdure.methods.parts.gaussian import MeanField, Sampling, adapter_sites, head_sites
from perdure.methods.parts.posteriors import Posteriors
from perdure.models.backbone import Backbone
from perdure.models.examples import Batch
from perdure.seeds import derived


@dataclass(kw_only=True)
class Variational(PeftMethod):
    """A method whose trained parameters have a Gaussian posterior, the prior of the next task.

    L = mean over examples of w · cross-entropy + beta / N · Σ_i c_i KL(q ‖ q_{t-1-i}),
    with samples of q. A subclass chooses the weights w and c.

    Parameters
    ----------
    beta
        The factor of the KL divergence; 1 is the evidence lower bound. With fewer
        examples than parameters, as is usual in fine-tuning, a much smaller factor is
        needed to learn anything.
    prior_sigma
        The standard deviation of the prior of parameters that no earlier task has
        trained. Its mean is their initial value.
    initial_sigma
        The σ with which the posterior of such parameters starts.
    divisor
        N: `examples`, the number of training examples, which gives the bound divided by
        that number; or `batch`, the number of examples in a step, as in the official code
        of TD-VCL.
    sampling
        `examples`: the weights of linear layers are sampled for each example, which
        lowers the variance of the gradient; other parameters as with `weights`.
        `weights`: one sample of the weights for each batch. Several processes then draw
        the same sample, and arrive at the same result as one process; with `examples`,
        each draws different noise, as it does with dropout.
    """

    usual_rule: ClassVar[str] = "last"
    tuned: ClassVar[Tuned | None] = Tuned("beta", 1e-5, 1e0)

    beta: Annotated[float, Ge(0)] = 1e-3
    prior_sigma: Annotated[float, Gt(0)] = 0.1
    initial_sigma: Annotated[float, Gt(0)] = 0.01
    divisor: Literal["examples", "batch"] = "examples"
    sampling: Sampling = "examples"

    def __post_init__(self):
        super().__post_init__()
        for name in ("prior_sigma", "initial_sigma"):
            if not getattr(self, name) > 0:
                raise InputError(
                    f"`{name}` is {getattr(self, name)}, but a standard deviation must be more "
                    "than 0."
                )

    @property
    def posteriors(self) -> Posteriors:
        """The posteriors of past tasks, which are part of the state."""
        return Posteriors(self.state)

    # -- the hooks

    def begin(self, backbone: Backbone, task: Task) -> None:
        """Continue from the latest posterior, with which new parameters are initialised."""
        self.go_on(backbone)
        self._seed = derived(torch.initial_seed(), task.name, "weights")
        self.state["steps"] = 0
        self._drawn = (0, 0)
        self._begin_head(backbone, task)
        earlier = [name for name in backbone.heads if name != task.name]
        tasks = [task.name, *self.replayed(earlier)]
        self.field = self.field_of(backbone, tasks)

    def _begin_head(self, backbone: Backbone, task: Task) -> None:
        """Forget any old posterior of a new head, or take over that of a head that tasks share."""
        head = backbone.own(task.name)
        sharing = [name for name in backbone.heads if backbone.own(name) is head]
        for name, site in head_sites(backbone, task.name).items():
            # The task may have been learned before, and then forgotten.
            self.posteriors.drop(name)
            for other in sharing:
                # The posteriors have a shared head under the name of the last task that trained it.
                before = f"head/{other}/{site.key}"
                if other != task.name and self.posteriors.knows(before):
                    self.posteriors.rename(before, name)

    def field_of(self, backbone: Backbone, heads: Sequence[str]) -> MeanField:
        """Return a Gaussian over the module and the heads of some tasks.

        The parameters of the model are set to the means of the latest posterior, from
        which the Gaussian starts. Parameters that it lacks get their prior.
        """
        sites = adapter_sites(backbone)
        for task in heads:
            of_head = head_sites(backbone, task)
            taken = {id(site.value) for site in sites.values()}
            # Tasks may share a head, which has a posterior under only one of their names.
            for name, site in of_head.items():
                if id(site.value) not in taken:
                    sites[name] = site
        start = {}
        for name, site in sites.items():
            value = site.value
            if self.posteriors.knows(name):
                mean, log_sigma = self.posteriors.latest(name)
                if mean.shape != value.shape:
                    raise RunError(
                        f"The posterior saved in the run does not fit the model: `{name}` has the "
                        f"shape {list(mean.shape)}, but {list(value.shape)} in the model."
                    )
                value.data.copy_(mean)
                start[name] = log_sigma
            else:
                prior = torch.full_like(value, math.log(self.prior_sigma))
                self.posteriors.start(name, value, prior)
                start[name] = torch.full_like(value, math.log(self.initial_sigma))
        return MeanField(sites, start)

    def parameters(self, backbone: Backbone) -> list[nn.Parameter]:
        """Return the means and the log σ of everything that is trained, including heads."""
        return [*self.field.means.values(), *self.field.log_sigmas.values()]

    def optimizer(self, groups: list[Group], training: Training, *, examples: int) -> Optimizer:
        self._training = training
        sizes = {
            "examples": examples,
            "batch": training.batch_size * training.gradient_accumulation,
        }
        self._divisor = sizes[self.divisor]
        # A separate group: weight decay of log σ would pull σ towards one.
        log_sigmas = list(self.field.log_sigmas.values())
        apart = {id(value) for value in log_sigmas}
        module, *others = groups
        means = [value for value in module["params"] if id(value) not in apart]
        separate = [
            {**module, "params": means},
            *others,
            {**module, "params": log_sigmas, "weight_decay": 0.0},
        ]
        return super().optimizer(separate, training, examples=examples)

    def around(self, optimizer: Optimizer) -> AbstractContextManager[object]:
        """Return a context manager inside which the model computes with samples of q."""
        # The batches of a step get different samples. They are counted from zero in each
        # step, so that a resumed run draws the same ones.
        step, batches = self._drawn
        batches = batches + 1 if step == self.state["steps"] else 0
        self._drawn = (self.state["steps"], batches)
        # Not torch's global seed, which differs between processes.
        seed = derived(self._seed, *self._drawn)
        return self.field.sampled(self.sampling, seed)

    def loss(self, backbone: Backbone, batch: Batch) -> Tensor:
        losses = self.weighted(backbone.losses(batch), batch)
        divergence = self.divergence()
        return losses.mean() + self.beta / self._divisor * divergence

    def update(self, backbone: Backbone, step: Callable[[], None]) -> None:
        step()
        self.state["steps"] += 1

    def end(self, backbone: Backbone, task: Task, optimizer: Optimizer) -> None:
        """Store the posterior, which becomes the prior of the next task."""
        del self.state["steps"]
        self.posteriors.push(self.field.normal(), keep=self.depth)

    def adapt(self, backbone: Backbone, rows: Rows, *, epochs: int) -> None:
        """Train a copy of the latest posterior on more examples, with that posterior as the prior.

        The model is left with the means of the copy. The posteriors in the state do not change.
        """
        training = self._training
        examples = backbone.encode(rows)
        # The last task first: a head that tasks share has its posterior under that task's name.
        learned = self.field
        self.field = self.field_of(backbone, examples.task_names()[::-1])
        self.state["steps"] = 0
        heads = []
        module = list(self.field.log_sigmas.values())
        for name, mean in self.field.means.items():
            mean.requires_grad_(True)
            (heads if name.startswith("head/") else module).append(mean)
        groups: list[Group] = [
            {"params": module, "lr": training.learning_rate},
            {"params": heads, "lr": training.head_learning_rate},
        ]
        optimizer = self.optimizer(groups, training, examples=len(examples))

        def step() -> None:
            nn.utils.clip_grad_norm_([*module, *heads], training.max_grad_norm)
            optimizer.step()

        for _ in range(epochs):
            order = torch.randperm(len(examples)).tolist()
            for first in range(0, len(order), training.batch_size):
                numbers = order[first : first + training.batch_size]
                batch = examples.batch(numbers, backbone.device)
                with self.around(optimizer):
                    self.loss(backbone, batch).backward()
                self.update(backbone, step)
                optimizer.zero_grad()
        del self.state["steps"]
        self.field = learned

    # -- the choices of a subclass

    @property
    def depth(self) -> int:
        """The number of past posteriors to keep."""
        return 1

    def replayed(self, earlier: Sequence[str]) -> list[str]:
        """Return those of the earlier tasks, in order, whose kept examples are trained on, too."""
        return []

    def weighted(self, losses: Tensor, batch: Batch) -> Tensor:
        """Return the losses of a batch, multiplied by the weights of their tasks."""
        return losses

    def divergence(self) -> Tensor:
        """Return the weighted sum of KL divergences from past posteriors."""
        prior = self.posteriors.normal(0, self.field.means)
        return self.field.divergence(prior)
