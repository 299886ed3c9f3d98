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
from perdure.learning.needs import check_needs
from perdure.learning.wrapper import Wrapper, inner_name
from perdure.methods.parts.choice import Choice
from perdure.methods.parts.generated import UNKNOWN, Generated, Generation, Source
from perdure.methods.parts.sampled import Pair
from perdure.models.backbone import Backbone


@dataclass(kw_only=True)
class Replay(Wrapper):
    """Learn with another method, on the new task's examples and stored examples of old tasks.

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
        The way in which the stored examples of each class are chosen, or with `share` of the
        task; not used with `source: own`. `balanced`: at random. `herding`: such that their
        mean feature is closest to that of the class (for a language model, features are means
        of the last hidden states over the prompt). `surprise`: those with the highest loss
        once the task is learned, where a causal language model predicts the prompt as well as
        the answer. `reservoir`: a uniform sample, as large as the stores of all tasks
        together, from all examples seen; not quite uniform if the number of classes grows
        faster than that of examples, because dropped examples cannot be brought back.
    source
        The origin of what is replayed; the last two are for language models. `data`, the
        default: the stored examples. `on_policy`: the stored prompts, with new answers by
        the newest model, which are sampled after each task. `own`: no examples are
        stored; after each task the model generates as many prompts and answers of it, or
        fewer with a warning. Of the data, generated prompts contain only what all prompts
        of the task begin and end with.
    candidates
        The number k of answers that `on_policy` samples for each prompt, by default 4, of
        which the best one is replayed, or the right answer if all are empty or cut off.
    select
        The meaning of *best*, with `on_policy`: `score`, the default, compares with the
        right answer by the task's score, and uses no answer that scores 0; `likelihood`
        takes the highest log-probability per token, whatever the right answer is.
    temperature
        The temperature at which answers and prompts are sampled, by default 0.7.

    References
    ----------
    Ratcliff, Connectionist models of recognition memory, 1990; Chaudhry et al., On Tiny
    Episodic Memories in Continual Learning, arXiv 1902.10486; herding: Rebuffi et al., iCaRL,
    arXiv 1611.07725; `surprise`: SuRe, arXiv 2511.22367. `on_policy`: OPR, arXiv 2605.29495,
    whose code needs all prompts of all past tasks, samples at temperature 0.1, and replays the
    best examples of each task; here the budget limits the stored prompts, and each of them is
    replayed with its own best answer.
    """

    per_class: Annotated[int, Ge(1)] = 20
    share: Annotated[float, Gt(0), Le(1)] | None = None
    strategy: Strategy = "balanced"
    source: Source | None = None
    candidates: Annotated[int, Ge(1)] | None = None
    select: Literal["score", "likelihood"] | None = None
    temperature: Annotated[float, Gt(0)] | None = None
    # The tasks passed to `examples`, which is called before each task, in a resumed run too.
    _seen: list[Task] = field(default_factory=list, init=False, repr=False)

    def __post_init__(self):
        # A method that keeps all data replays it anyway, and one that computes heads cannot.
        if self.method.computes_heads or self.method.keeps_all:
            raise InputError(
                f"`{inner_name(self.method)}` has no use for old examples: "
                "there is nothing to replay."
            )
        self._choice.check()
        self._generation.check(self.strategy)

    @property
    def needs(self) -> frozenset[Need]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The requirements of the inner method and, to generate, those of the model."""
        return self.method.needs | self._generation.needs

    @property
    def instead(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self._generation.instead or self.method.instead

    @property
    def isolates(self) -> bool:
        """False, because a task is also trained on examples of other tasks."""
        return False

    @property
    def _choice(self) -> Choice:
        return Choice(per_class=self.per_class, share=self.share, strategy=self.strategy)

    @property
    def _generation(self) -> Generation:
        return Generation(self.source, self.candidates, self.select, self.temperature)

    @property
    def store_bytes(self) -> int:
        """The bytes of stored and generated examples, and of those of the inner method."""
        own = Exemplars.of(self.remembered).size + Generated.of(self.remembered).size
        return own + self.method.store_bytes

    def examples(self, seen: Sequence[Task]) -> Rows:
        """Return the rows of the inner method, followed by the stored rows of old tasks."""
        self._seen = list(seen)
        old = {task.name: task.classes for task in seen[:-1]}
        kept = Exemplars.of(self.remembered).rows(old)
        if self._generation.needs:
            kept = Generated.of(self.remembered).rows(old, kept)
        return [*super().examples(seen), *kept]

    def begin(self, backbone: Backbone, task: Task) -> None:
        """Prepare the inner method, and check that the model can generate what is replayed."""
        check_needs(self, backbone, [task])
        super().begin(backbone, task)

    def end(self, backbone: Backbone, task: Task, optimizer: Optimizer) -> None:
        """Choose which examples of the task to store, and generate what is replayed."""
        super().end(backbone, task, optimizer)
        examples = backbone.encode(task.rows("train"))
        if self.source == "own":
            count = self._choice.count(task.group_count, len(examples))
            self._remember_own(task, self._generation.examples(task, count, backbone))
            return
        kept = self._stored(task, examples.labels, self._choice.measured(backbone, examples))
        answers: dict[str, list[str]] = {}
        if self.source == "on_policy":
            scores = self._scores(task)
            answers = self._generation.answers(kept.rows(self._classes), scores, backbone)
        self._remember(task, kept, answers)

    def foresee(self, task: Task) -> None:
        """Store as many examples as `end` would, without choosing or generating any."""
        super().foresee(task)
        labels = task.groups("train")
        if self.source == "own":
            count = self._choice.count(task.group_count, len(labels))
            self._remember_own(task, [(UNKNOWN, UNKNOWN)] * count)
            return
        kept = self._stored(task, labels, None)
        answers = {rows.task: [UNKNOWN] * len(rows.data) for rows in kept.rows(self._classes)}
        self._remember(task, kept, answers)

    def _remember_own(self, task: Task, pairs: Sequence[Pair]) -> None:
        """Add the generated examples of a task to those of the earlier tasks."""
        generated = Generated.of(self.remembered).of_tasks(self._before(task))
        self.remembered = generated.with_task(task.name, pairs).state()

    def _remember(self, task: Task, kept: Exemplars, answers: dict[str, list[str]]) -> None:
        """Remember the stored examples and, with `on_policy`, the answers to their prompts."""
        scores = self._scores(task)
        self.remembered = kept.state()
        if self.source == "on_policy":
            self.remembered |= Generated(answers, {}, scores).state()

    def _stored(self, task: Task, labels: Sequence[int], values: Tensor | None) -> Exemplars:
        """Return the stored examples, with some of a new task: see `Choice.store`."""
        kept = Exemplars.of(self.remembered).of_tasks(self._before(task))
        # The loop has set torch's seed for this task's end: a resumed run draws the same examples.
        random = np.random.default_rng(torch.initial_seed())
        groups = {seen.name: seen.group_count for seen in self._seen}
        self._choice.store(kept, task, labels, values=values, groups=groups, random=random)
        return kept

    @property
    def _classes(self) -> dict[str, tuple[str, ...]]:
        return {seen.name: seen.classes for seen in self._seen}

    def _scores(self, task: Task) -> dict[str, str]:
        """Return the names of the scores of the earlier tasks and of the new one."""
        before = Generated.of(self.remembered).of_tasks(self._before(task))
        return before.scores | {task.name: task.score}

    def _before(self, task: Task) -> list[str]:
        """Return the earlier tasks, without forgotten ones, and without one learned again."""
        return [earlier.name for earlier in self._seen if earlier.name != task.name]
