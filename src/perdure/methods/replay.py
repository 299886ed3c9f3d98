"""Experience replay for any method: some old examples are stored and mixed with new ones."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Literal

import numpy as np
import torch
from annotated_types import Ge, Gt, Le
from torch import Tensor
from torch.optim import Optimizer

from perdure.data.exemplars import Exemplars, Strategy
from perdure.data.task import Rows, Task
from perdure.errors import InputError
from perdure.learning.method import Need
from perdure.learning.wrapper import Wrapper
from perdure.methods.parts.choice import Choice
from perdure.methods.parts.generated import Generated, Generation
from perdure.methods.parts.sampled import check_source
from perdure.models.backbone import Backbone

GENERATED = ("own", "on_policy")
"""The sources that need a language model."""


@dataclass(kw_only=True)
class Replay(Wrapper):
    """Learn with another method, on the new task's examples mixed with stored examples of old
    tasks.

    Old examples have the same weight as new ones. Each uses the head of its task, which
    is trained further. After each task, some of its examples are added to the store,
    which is part of the method's state and so is saved in the task's folder. The size of
    the store is `store_bytes` in `events.jsonl`.

    Parameters
    ----------
    method
        The inner method.
    per_class
        The number of examples to store for each class, or for each task if answers are free text.
    share
        The share of each task's training examples to store, at least one example, instead of
        `per_class` for each class: 0.01 is the usual 1 %.
    strategy
        The way in which the stored examples are chosen. `balanced`: at random from each
        class, or with `share` from the task. `herding`: such that their mean feature is
        closest to the mean feature of the class (for a language model, features are means
        of the last hidden states over the prompt). `surprise`: those that the model finds
        most improbable once it has learned the task, of each class, or with `share` of the
        task: the examples with the highest loss, where a causal language model predicts
        the prompt as well as the answer. `reservoir`: a uniform sample, as large
        as the stores of all tasks together, from all examples seen. It is not quite
        uniform if the number of classes grows faster than the number of examples, because
        examples that were dropped earlier cannot be brought back.
    source
        The origin of what is replayed; the last two are for language models. `data`, the
        default: the stored examples. `on_policy`: the stored prompts, with new answers by
        the newest model, which are sampled after each task. `own`: no examples are
        stored; after each task the model generates as many prompts and answers of it. Of
        the data it keeps only what all prompts of the task begin and end with.
    candidates
        The number k of answers that `on_policy` samples for each prompt, by default 4, of
        which the best one is replayed. It is the right answer if none can be used.
    select
        The meaning of *best*: `score`, the default, compares with the right answer by the
        task's score, and uses no answer that scores 0; `likelihood` takes the highest
        log-probability per token, and does not look at the right answer.
    temperature
        The temperature at which answers and prompts are sampled, by default 0.7.

    References
    ----------
    Ratcliff, Connectionist models of recognition memory, 1990; Chaudhry et al., On Tiny
    Episodic Memories in Continual Learning, arXiv 1902.10486; herding: Rebuffi et al., iCaRL,
    arXiv 1611.07725; `surprise`: SuRe, arXiv 2511.22367. `on_policy`: OPR, arXiv 2605.29495,
    whose code needs all prompts of all past tasks, and counts only what it replays; here
    the budget `per_class` limits the stored prompts.
    """

    per_class: Annotated[int, Ge(1)] = 20
    share: Annotated[float, Gt(0), Le(1)] | None = None
    strategy: Strategy = "balanced"
    source: Literal["data", "own", "on_policy"] | None = None
    candidates: Annotated[int, Ge(1)] | None = None
    select: Literal["score", "likelihood"] | None = None
    temperature: Annotated[float, Gt(0)] | None = None
    # The tasks passed to `examples`, which is called before each task, in a resumed run too.
    _seen: list[Task] = field(default_factory=list, init=False, repr=False)

    def __post_init__(self):
        # A method that keeps all data replays it anyway, and one that computes heads cannot.
        if self.method.computes_heads or self.method.keeps_all:
            raise InputError(
                f"`{type(self.method).__name__}` has no use for old examples: "
                "there is nothing to replay."
            )
        if self.per_class < 1:
            raise InputError(
                f"`per_class` is {self.per_class}, so `replay` has nothing to replay: give at "
                "least 1."
            )
        if self.share is not None and self.strategy == "herding":
            raise InputError(
                "`share` cannot be used with `strategy: herding`, which chooses examples of each "
                "class: use `per_class` instead, or `strategy: balanced`."
            )

    @property
    def needs(self) -> frozenset[Need]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The requirements of the inner method and, to generate answers, a language model."""
        words: frozenset[Need] = frozenset({"words"})
        return self.method.needs | words if self.source in GENERATED else self.method.needs

    @property
    def instead(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        return "Use `source: data`." if self.source in GENERATED else self.method.instead

    @property
    def isolates(self) -> bool:
        """False, because a task is also trained on examples of other tasks."""
        return False

    @property
    def _choice(self) -> Choice:
        return Choice(per_class=self.per_class, share=self.share, strategy=self.strategy)

    @property
    def store_bytes(self) -> int:
        """The size of the stored examples in bytes: texts with their answers, or encoded images.

        Generated prompts and answers are included.
        """
        return Exemplars.of(self.remembered).size + Generated.of(self.remembered).size

    def examples(self, seen: Sequence[Task]) -> Rows:
        """Return the rows of the inner method, followed by the stored rows of old tasks."""
        self._seen = list(seen)
        old = {task.name: task.classes for task in seen[:-1]}
        kept = Exemplars.of(self.remembered).rows(old)
        if self.source in GENERATED:
            kept = Generated.of(self.remembered).rows(old, kept)
        return [*super().examples(seen), *kept]

    def begin(self, backbone: Backbone, task: Task) -> None:
        """Prepare the inner method, and check that the model can generate what is replayed."""
        super().begin(backbone, task)
        if self.source in GENERATED:
            check_source(self.source, backbone, task)

    def end(self, backbone: Backbone, task: Task, optimizer: Optimizer) -> None:
        """Choose which examples of the task to store, and generate what is replayed."""
        super().end(backbone, task, optimizer)
        examples = backbone.encode(task.rows("train"))
        values = None
        if self.source != "own":
            values = self._choice.measured(backbone, examples)
        self._store(task, examples.labels, values, backbone)

    def foresee(self, task: Task) -> None:
        """Store as many examples as `end` would, without choosing or generating any."""
        super().foresee(task)
        self._store(task, task.groups("train"), None, None)

    def _store(
        self,
        task: Task,
        labels: Sequence[int],
        values: Tensor | None,
        backbone: Backbone | None,
    ) -> None:
        """Store examples of a task; a dry run has no values to choose by, and no backbone."""
        # Drop the examples of forgotten tasks, and those of this task if it is learned again.
        old = [earlier.name for earlier in self._seen if earlier.name != task.name]
        generated = Generated.of(self.remembered).of_tasks(old)
        generation = Generation(self.candidates, self.select, self.temperature)
        if self.source == "own":
            count = self._choice.count(task.group_count, len(labels))
            self.remembered = generation.imagined(generated, task, count, backbone).state()
            return
        kept = Exemplars.of(self.remembered).of_tasks(old)
        # The loop has set torch's seed for this task's end: a resumed run draws the same examples.
        random = np.random.default_rng(torch.initial_seed())
        groups = {seen.name: seen.group_count for seen in self._seen}
        self._choice.store(kept, task, labels, values=values, groups=groups, random=random)
        self.remembered = kept.state()
        if self.source == "on_policy":
            rows = kept.rows({seen.name: seen.classes for seen in self._seen})
            self.remembered |= generation.answered(generated, rows, task, backbone).state()
