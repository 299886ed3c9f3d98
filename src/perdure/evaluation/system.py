"""The thing that answers: a backbone, the tasks that it has learned, and the rule that combines them."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from perdure.data.task import Split, Task
from perdure.evaluation.posterior import TaskPosterior, describe
from perdure.evaluation.score import TASK_IDS, Answers, TaskId, probabilities, settled, task_logits
from perdure.merging.combine import Combined, combine
from perdure.merging.rule_settings import Rule
from perdure.models.adapters import Adapter
from perdure.models.backbone import Backbone, evaluating
from perdure.models.examples import Examples
from perdure.vectors.gaussians import Gaussians
from perdure.vectors.statistics import Statistics
from perdure.vectors.task_vector import TaskVector

Classes = Mapping[str, tuple[str, ...]]
"""The classes of tasks, by the tasks' names."""


@dataclass(frozen=True)
class Learned:
    """All that is kept of one task.

    Attributes
    ----------
    heads
        The heads that this task's training changed, by task: its own, and perhaps earlier ones.
    state
        What the method remembers.
    digests
        The SHA-256 of each split.
    gaussians
        Of the combined model's features when the task had been learned; only where heads are
        aligned.
    """

    classes: tuple[str, ...]
    adapter: Adapter
    heads: dict[str, dict[str, Tensor]]
    statistics: Statistics
    state: dict[str, Any]
    digests: dict[str, str]
    gaussians: Gaussians | None = None

    @property
    def name(self) -> str:
        """The task's name."""
        return self.adapter.name


@dataclass(frozen=True)
class System:
    """A backbone with the tasks that it has learned, in order, and the rule that combines them.

    The backbone holds the heads of all tasks learned. A system of fewer of them (`until`) may
    need others: inside `loaded` the backbone has those.

    Attributes
    ----------
    shares_head
        All tasks have one head.
    """

    backbone: Backbone
    learned: tuple[Learned, ...]
    rule: Rule
    shares_head: bool = False

    @property
    def tasks(self) -> list[str]:
        """The names of the tasks learned."""
        return list(self.classes)

    @cached_property
    def classes(self) -> Classes:
        """The classes of each task learned, by its name."""
        return {task.name: task.classes for task in self.learned}

    def until(self, step: int) -> "System":
        """Return the system as it was after its first `step` tasks."""
        return replace(self, learned=self.learned[:step])

    def with_task(self, learned: Learned) -> "System":
        """Return the system with one more task."""
        return replace(self, learned=(*self.learned, learned))

    def with_rule(self, rule: Rule) -> "System":
        """Return the system with another rule."""
        return replace(self, rule=rule)

    @cached_property
    def posterior(self) -> TaskPosterior:
        """The task posterior of the tasks learned."""
        return TaskPosterior({task.name: task.statistics for task in self.learned})

    @cached_property
    def combined(self) -> Combined:
        """The model that the rule makes of the adapters; before the first task the model as it was."""
        if not self.learned:
            return Combined(TaskVector({}))
        return combine([task.adapter for task in self.learned], self.rule)

    # -- the backbone

    @contextlib.contextmanager
    def loaded(self) -> Iterator[None]:
        """Give the backbone the heads as they were after the last of the tasks, while the block runs.

        Afterwards it has its own heads again, and its modules the mode in which they were.
        """
        with evaluating(self.backbone), self.backbone.keeping():
            self.give_heads()
            yield

    def give_heads(self) -> None:
        """Give the backbone the heads as they were after the last of the tasks, for good.

        A later task may have trained an earlier one's head on. A shared head is the last task's.
        """
        for name in self.backbone.heads:  # there may be heads of tasks to come
            self.backbone.close(name)
        if self.shares_head and self.learned:
            last = self.learned[-1]
            self.backbone.put(self.learned[0].name, last.heads[last.name])
            for task in self.learned[1:]:
                self.backbone.share(task.name)
            return
        for task in self.learned:
            for name, head in task.heads.items():
                if name in self.classes:  # else it is the head of a task that was forgotten
                    self.backbone.put(name, head)

    # -- answers

    def answer(
        self,
        task: Task,
        split: Split = "test",
        task_ids: Sequence[TaskId] = TASK_IDS,
        *,
        among: Classes | None = None,
        combined: Combined | None = None,
    ) -> Answers:
        """Answer a task's examples with a class, for each way to know the task.

        Parameters
        ----------
        among
            The tasks whose classes may be answered, with a head each; by default those learned.
        combined
            Another model than the one that the rule makes, as while its scale is searched.

        Raises
        ------
        NotFinite
            The rule makes a model whose answers are not finite numbers.
        """
        among = among or self.classes
        combined = combined or self.combined
        examples = self.backbone.encode(task.rows(split))
        log_weights = None
        if "posterior" in task_ids:
            log_weights = self._log_weights(examples, tasks=len(among))
            log_weights = settled(log_weights) if combined.picks else log_weights
        # the other ways to know the task need a pass for each task anyway
        alone = log_weights if set(task_ids) == {"posterior"} else None
        heads = [task.name] if set(task_ids) == {"given"} else [*among, task.name]
        heads = list(dict.fromkeys(heads))
        logits = task_logits(self.backbone, combined, examples, heads, alone)

        index = _index([*among.values(), task.classes])
        places = torch.tensor([index[name] for name in task.classes])
        competing = {name: logits[name] for name in among if name in logits}
        competing_places = [[index[label] for label in among[name]] for name in competing]
        answered: dict[TaskId, Tensor] = {}
        for task_id in task_ids:
            if task_id == "given":
                answered[task_id] = places[logits[task.name].argmax(1)]
                continue
            weights = log_weights if task_id == "posterior" else None
            answered[task_id] = probabilities(competing, competing_places, weights).argmax(1)
        return Answers(tuple(index), places[torch.tensor(examples.labels)], answered)

    def _log_weights(self, examples: Examples, *, tasks: int) -> Float[Tensor, "examples tasks"]:
        """Return log p(t | x): of tasks of which nothing is learned, each is as likely."""
        if not self.learned:
            return torch.full((len(examples), tasks), 1 / tasks).log()
        return self.posterior.log_prob(describe(self.backbone, examples))


def _index(classes: Sequence[tuple[str, ...]]) -> dict[str, int]:
    """Return the place of each class, those of the same name being one."""
    names = dict.fromkeys(name for of_task in classes for name in of_task)
    return {name: place for place, name in enumerate(names)}
