"""The interface of a method, how one task is learned after others: nine hooks with defaults.

    beneath(earlier) → begin(backbone, task) → parameters(backbone) → optimizer(groups,
    training) → each step: loss(backbone, batch of examples(seen)) inside around(optimizer);
      then update(backbone, step)
    → end(backbone, task, optimizer)

`Method` is the hooks alone; `PeftMethod`, the base class of most methods, trains one fresh PEFT
module per task, all from the same start. A method is one file in `methods/`: it overrides what its
paper changes, and no method derives from another.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal

import torch
from annotated_types import Ge, Gt, Lt
from torch import Tensor, nn
from torch.optim import Optimizer

from perdure.data.task import Rows, Task
from perdure.errors import InputError
from perdure.learning.snapshot import State
from perdure.learning.training import Training
from perdure.models import adapter_targets, adapters
from perdure.models.adapters import Adapter
from perdure.models.backbone import Backbone
from perdure.models.examples import Batch

Need = Literal["heads", "lora", "classes"]
Group = dict[str, Any]
"""A group of parameters, or its settings, as torch's optimizers take them."""


@dataclass(frozen=True)
class Tuned:
    """The most important setting of a method, with the range that `perdure tune` searches.

    The search is on a logarithmic scale.
    """

    name: str
    low: float
    high: float


@dataclass(kw_only=True)
class Method:
    """The hooks that define how one task is learned after others; this base class adds no PEFT
    module.
    """

    usual_rule: ClassVar[str] = "last"
    """The rule in `rules/` that goes with the method if a recipe names none."""
    tuned: ClassVar[Tuned | None] = None
    """The method's main coefficient, if it has one."""
    needs: ClassVar[frozenset[Need]] = frozenset()
    """The requirements of the method, checked before anything is trained.

    `heads`: a backbone on which each task has a head; `lora`: `peft: lora`; `classes`: tasks
    that have classes.
    """
    instead: ClassVar[str] = "Choose another method."
    """Advice, in one sentence, for when these requirements are not met."""
    state: State = field(default_factory=dict, init=False, repr=False)
    """The method's memory between tasks and (if it changes in training) inside one, by name.

    It is saved after each task, and with every state inside a task. A run that resumes inside
    a task calls `begin` as for a new one, and then puts back the parameters and this state:
    anything else that changes in training would be lost.
    """

    @property
    def isolates(self) -> bool:
        """True if a task is learned as if there were no others.

        Such a task can be removed without a trace. False by default: a method has to claim it.
        """
        return False

    @property
    def trains(self) -> bool:
        """True if gradients train anything, so that there is a learning rate."""
        return True

    @property
    def keeps_all(self) -> bool:
        """True if the examples of all tasks are kept and trained on again."""
        return False

    @property
    def store_bytes(self) -> int:
        """The size of the old examples that the method keeps."""
        return 0

    @property
    def module(self) -> adapters.Kind | None:
        """The kind of PEFT module that holds what a task has learned, if there is one."""
        return None

    def beneath(self, earlier: Sequence[Adapter]) -> Sequence[Adapter]:
        """Return the earlier adapters on whose sum the new task is learned; by default none."""
        return ()

    def begin(self, backbone: Backbone, task: Task) -> None:
        """Prepare for a task, whose head has been added.

        Torch's random state is the same for every task of a run.
        """

    def parameters(self, backbone: Backbone) -> list[nn.Parameter]:
        """Return the parameters to train besides the heads of the tasks that have examples.

        Nothing else may change in training.
        """
        return list(adapters.trainable(backbone.model).values())

    def trained(self, backbone: Backbone) -> int:
        """Return the number of trained values, if not all values of `parameters` are trained."""
        return sum(parameter.numel() for parameter in self.parameters(backbone))

    def optimizer(self, groups: list[Group], training: Training, *, examples: int) -> Optimizer:
        """Return the optimizer of one task, by default AdamW.

        The loop sets the schedule of the learning rate. A run that resumes inside a task restores
        everything that is in the optimizer's `state_dict`.

        Parameters
        ----------
        groups
            Groups of parameters, each with its learning rate `lr`, as torch's optimizers take them.
        examples
            The number of training examples, which Bayesian optimizers ask for; 0 if nothing is
            trained.
        """
        return torch.optim.AdamW(
            groups, lr=training.learning_rate, weight_decay=training.weight_decay
        )

    def around(self, optimizer: Optimizer) -> AbstractContextManager[object]:
        """Return a context around each loss and its gradient.

        It may move the parameters, and puts them back at its end.
        """
        return nullcontext()

    def examples(self, seen: Sequence[Task]) -> Rows:
        """Return the rows to train on. `seen[-1]` is the new task; the others are old data.

        The names and classes of old tasks are always there, but their examples may be gone
        (`Task.missing`), and asking for those is an error. A method that needs them declares
        `keeps_all`, and is refused beforehand.

        Return no rows to skip training; `end` then does all the work.
        """
        return seen[-1].rows("train")

    def loss(self, backbone: Backbone, batch: Batch) -> Tensor:
        """Return the loss of a batch, a scalar: by default the mean of its examples' losses."""
        return backbone.losses(batch).mean()

    def update(self, backbone: Backbone, step: Callable[[], None]) -> None:
        """Make a `step` of the optimizer.

        The gradients are those of the whole batch, not yet clipped.
        """
        step()

    def end(self, backbone: Backbone, task: Task, optimizer: Optimizer) -> None:
        """Remember what later tasks will need. The optimizer is as the last step left it."""

    def foresee(self, task: Task) -> None:
        """Remember, in place of `end`, what decides how many examples later tasks train on.

        A run that is only counted (`perdure run --dry-run`) calls it, on a backbone that has shapes
        and no values; `begin` is called there as well. Most methods remember nothing.
        """


@dataclass(kw_only=True)
class PeftMethod(Method):
    """A method that learns in a PEFT module; by default in a fresh one for each task.

    Parameters
    ----------
    peft
        `lora`; `bottleneck` (an adapter behind linear layers); or `full`: a change of every
        weight and bias of all layers, which is full fine-tuning, with weight decay towards the
        pre-trained model. With `full`, `rank`, `alpha` and `dropout` are ignored; parameters
        outside of layers, such as a class token, stay as they are.
    rank
        The rank of LoRA, or the width of a bottleneck.
    alpha
        LoRA's scale is alpha / rank.
    dropout
        The share of inputs that the module drops in training.
    target_modules
        Names of linear layers, or a regular expression; by default query and value (LoRA), the
        outputs of attention and feed-forward parts (bottleneck; `pfeiffer`: of the feed-forward
        parts only), or all layers with weights (full).
    """

    peft: adapters.Kind = "lora"
    rank: Annotated[int, Ge(1)] = 8
    alpha: Annotated[float, Gt(0)] = 16.0
    dropout: Annotated[float, Ge(0), Lt(1)] = 0.0
    target_modules: list[str] | str | None = None

    usual_rule: ClassVar[str] = "task_arithmetic"
    lora_because: ClassVar[str] = ""
    """The reason why the method needs `lora`, if it does, as the beginning of a sentence."""

    def __post_init__(self):
        if "lora" in self.needs and self.peft != "lora":
            because = self.lora_because or f"cannot be learned with `peft: {self.peft}`"
            raise InputError(f"`{method_name(self)}` {because}: it needs `peft: lora`.")

    @property
    def module(self) -> adapters.Kind | None:
        return self.peft

    def begin(self, backbone: Backbone, task: Task) -> None:
        self.attach(backbone)

    def attach(
        self,
        backbone: Backbone,
        *,
        target_modules: list[str] | str | None = None,
        blocks: int | None = None,
        times: int = 1,
    ) -> None:
        """Put a fresh module into the model, as the settings say.

        Parameters
        ----------
        target_modules
            The layers to use instead of the settings'.
        blocks
            The number of the transformer's first blocks that get the module; by default all.
        times
            The factor on the rank and on alpha, so that the scale alpha / rank stays.
        """
        config = adapter_targets.configure(
            backbone.model,
            self.peft,
            rank=times * self.rank,
            alpha=times * self.alpha,
            dropout=self.dropout,
            target_modules=target_modules or self.target_modules,
            blocks=blocks,
        )
        adapters.attach(backbone.model, config)

    def go_on(self, backbone: Backbone) -> None:
        """Keep the last task's module for further training, or put in a fresh one."""
        if not adapters.attached(backbone.model):
            self.attach(backbone)


def method_name(method: Method) -> str:
    """Return a method's name, which is its file's."""
    return type(method).__module__.rpartition(".")[2]
