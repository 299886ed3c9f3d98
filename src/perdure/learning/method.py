"""The interface of a method, which defines how tasks are learned one after another.

A method has nine hooks, all with defaults:

    beneath(earlier) → begin(backbone, task) → parameters(backbone) → optimizer(groups,
    training) → each step: loss(backbone, batch of examples(seen)) inside
    around(optimizer),
      `passes` times; then update(backbone, step)
    → end(backbone, task, optimizer)

`Method` has only the hooks. `PeftMethod`, the base class of most methods, trains a fresh
PEFT module for each task, always from the same initial values. Each method is one file in
`methods/`, which overrides the hooks that its paper changes. No method derives from
another.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal

from annotated_types import Ge, Gt, Lt
from torch import Tensor, nn
from torch.optim import Optimizer

from perdure.data.task import Rows, Task
from perdure.errors import InputError
from perdure.learning import optimizers
from perdure.learning.optimizers import Group as Group
from perdure.learning.snapshot import State
from perdure.learning.training import Training
from perdure.models import adapter_targets, adapters
from perdure.models.adapters import Adapter
from perdure.models.backbone import Backbone
from perdure.models.examples import Batch

Need = Literal["heads", "words", "causal", "lora", "classes", "texts"]


@dataclass(frozen=True)
class Tuned:
    """The most important setting of a method, with the range in which `perdure tune` searches it.

    The search is on a logarithmic scale.
    """

    name: str
    low: float
    high: float


@dataclass(kw_only=True)
class Method:
    """The base class of all methods: hooks that define how a task is learned after others.

    It adds no PEFT module.
    """

    usual_rule: ClassVar[str] = "last"
    """The rule in `rules/` that is used with the method if a recipe names none."""
    tuned: ClassVar[Tuned | None] = None
    """The method's main coefficient, if it has one."""
    needs: ClassVar[frozenset[Need]] = frozenset()
    """The requirements of the method, which are checked before anything is trained.

    `heads`: the backbone has a head for each task; `words`: it has none, but answers in
    words; `causal`: it is a causal language model; `lora`: the setting `peft: lora`;
    `classes`: the tasks have classes; `texts`: their prompts are no conversations.
    """
    task_free: ClassVar[bool] = False
    """True if the method can learn a graduated stream, whose tasks have no boundaries."""
    instead: ClassVar[str] = "Choose another method."
    """One sentence of advice that is shown if the requirements in `needs` are not met."""
    state: State = field(default_factory=dict, init=False, repr=False)
    """The values that the method remembers between tasks, by name.

    They are saved after each task, and with every checkpoint in the middle of a task. A
    run that resumes from such a checkpoint calls `begin` as for a new task, and then
    restores the parameters and this dictionary. Anything else that changes during
    training is lost.
    """

    @property
    def isolates(self) -> bool:
        """True if each task is learned as if there were no other tasks.

        Such a task can be removed without a trace. The default is False; a method has to
        declare that it isolates tasks.
        """
        return False

    @property
    def trains(self) -> bool:
        """True if anything is trained by gradients, so that the method uses a learning rate."""
        return True

    @property
    def computes_heads(self) -> bool:
        """True if each task's head is computed from features, even if a module is trained."""
        return not self.trains

    @property
    def passes(self) -> int:
        """The number of times that each batch of a step is passed through the model.

        Every pass calls `around` and `loss`, and the step uses the mean of the losses.
        """
        return 1

    @property
    def scheduled(self) -> bool:
        """True if the learning rate follows the schedule of `training`, as it does by default.

        The schedule starts again with each task. If this is False, the learning rate is constant.
        """
        return True

    @property
    def brings_optimizer(self) -> bool:
        """True if the method has its own optimizer, which `training.optimizer` cannot replace."""
        return type(self).optimizer is not Method.optimizer

    @property
    def keeps_all(self) -> bool:
        """True if the method needs the examples of all tasks, because it trains on them again."""
        return False

    @property
    def store_bytes(self) -> int:
        """The size, in bytes, of the old examples that the method stores."""
        return 0

    @property
    def module(self) -> adapters.Kind | None:
        """The kind of PEFT module that is trained on a task; None if there is no such module."""
        return None

    def beneath(self, earlier: Sequence[Adapter]) -> Sequence[Adapter]:
        """Return the earlier adapters that are added to the model while the new task is learned.

        By default there are none.
        """
        return ()

    def begin(self, backbone: Backbone, task: Task) -> None:
        """Prepare to learn a task. Its head has already been added to the backbone.

        Torch's random state is the same at the beginning of every task in a run.
        """

    def parameters(self, backbone: Backbone) -> list[nn.Parameter]:
        """Return the parameters to train, in addition to the heads of the tasks trained on.

        No other parameters may change during training.
        """
        return list(adapters.trainable(backbone.model).values())

    def trained(self, backbone: Backbone) -> int:
        """Return the number of values that are trained, by default all values of `parameters`.

        Override this method if some of those values stay fixed.
        """
        return sum(parameter.numel() for parameter in self.parameters(backbone))

    @property
    def trains_all(self) -> bool:
        """True if all values of `parameters` are trained, which is so unless `trained` differs."""
        return type(self).trained is Method.trained

    def optimizer(self, groups: list[Group], training: Training, *, examples: int) -> Optimizer:
        """Return the optimizer for one task, by default the one that `training` chooses.

        The training loop sets the learning rate schedule. A run that resumes in the
        middle of a task restores everything in the optimizer's `state_dict`.

        Parameters
        ----------
        groups
            Parameter groups in the format of torch's optimizers, each with a learning rate `lr`.
        examples
            The number of training examples, which Bayesian optimizers need; 0 if nothing
            is trained.
        """
        return optimizers.make(groups, training)

    def around(self, optimizer: Optimizer) -> AbstractContextManager[object]:
        """Return the context manager inside which each loss and its gradient are computed.

        It may change the parameters on entry, but must restore them on exit.
        """
        return nullcontext()

    def examples(self, seen: Sequence[Task]) -> Rows:
        """Return the rows to train on, by default the training examples of the new task.

        `seen[-1]` is the new task, and the others are earlier tasks. The names and
        classes of earlier tasks are always available, but their examples may be missing
        (`Task.missing`), and reading those is an error. A method that needs them must
        declare `keeps_all`, so that a run without them is refused before training.

        Return no rows to skip training; `end` then does all the work.
        """
        return seen[-1].rows("train")

    def loss(self, backbone: Backbone, batch: Batch) -> Tensor:
        """Return the loss of a batch as a scalar, by default the mean loss of its examples."""
        return backbone.losses(batch).mean()

    def update(self, backbone: Backbone, step: Callable[[], None]) -> None:
        """Take one optimizer step by calling `step`, which first clips the gradients.

        Until then, the gradients are those of the entire batch, before clipping.
        """
        step()

    def end(self, backbone: Backbone, task: Task, optimizer: Optimizer) -> None:
        """Store everything that later tasks will need.

        The optimizer is in the state in which the last step left it.
        """

    def foresee(self, task: Task) -> None:
        """Update `state` after a task in a dry run, which calls this hook instead of `end`.

        `perdure run --dry-run` calls `begin` and this hook for each task, on a backbone
        without values. Only methods that train on old examples need this hook: it has to
        store as many examples as `end` would. By default it does nothing.
        """


@dataclass(kw_only=True)
class PeftMethod(Method):
    """A method that trains a PEFT module, by default a fresh one for each task.

    Parameters
    ----------
    peft
        `lora`; `bottleneck` (an adapter after linear layers); or `full`, which is full
        fine-tuning of all weights and biases of all layers, with weight decay towards the
        pre-trained model. With `full`, `rank`, `alpha` and `dropout` are ignored, and
        parameters outside of layers, such as a class token, are not trained.
    rank
        The rank of LoRA, or the width of the bottleneck.
    alpha
        LoRA's scale is alpha / rank.
    dropout
        The probability with which an input of the module is dropped during training.
    target_modules
        Names of linear layers, or a regular expression. The default is query and value
        for LoRA, the outputs of the attention and feed-forward parts for bottleneck
        adapters (with `pfeiffer`, of the feed-forward parts only), and all layers with
        weights for `full`.
    """

    peft: adapters.Kind = "lora"
    rank: Annotated[int, Ge(1)] = 8
    alpha: Annotated[float, Gt(0)] = 16.0
    dropout: Annotated[float, Ge(0), Lt(1)] = 0.0
    target_modules: list[str] | str | None = None

    usual_rule: ClassVar[str] = "task_arithmetic"
    lora_because: ClassVar[str] = ""
    """The reason why the method requires LoRA, as a verb phrase after the method's name.

    It completes the error message: "`NAME` REASON: it needs `peft: lora`."
    """

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
        """Attach a fresh PEFT module to the model, configured by the method's settings.

        Parameters
        ----------
        target_modules
            Layers to use instead of those in the settings.
        blocks
            If given, attach the module only to the first `blocks` blocks of the transformer.
        times
            A factor that multiplies both the rank and alpha, which leaves LoRA's scale
            alpha / rank unchanged.
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
        """Keep the last task's module for further training; attach a fresh one if there is none."""
        if not adapters.attached(backbone.model):
            self.attach(backbone)


def method_name(method: Method) -> str:
    """Return the name of a method, which is the name of its file without `.py`."""
    return type(method).__module__.rpartition(".")[2]
