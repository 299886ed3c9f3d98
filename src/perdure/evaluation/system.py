"""A system: a backbone, the tasks it has learned, and a rule that combines them."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from perdure.data.task import Split, Task
from perdure.errors import RunError
from perdure.evaluation.answers import Answers, Texts
from perdure.evaluation.posterior import PosteriorSettings, TaskPosterior, describe
from perdure.evaluation.score import (
    TASK_IDS,
    TaskId,
    generated,
    probabilities,
    ranked_words,
    settled,
    task_logits,
)
from perdure.evaluation.unknown import KnownInputs
from perdure.evaluation.validation import Validation, fitted_temperature
from perdure.merging.combine import Combined, combine
from perdure.merging.rule_settings import Rule
from perdure.models.adapters import Adapter
from perdure.models.backbone import Backbone, evaluating
from perdure.models.examples import Examples
from perdure.vectors.gaussians import Gaussians
from perdure.vectors.statistics import Statistics
from perdure.vectors.task_vector import TaskVector

Classes = Mapping[str, tuple[str, ...]]
"""The classes of each task, by task name."""


@dataclass(frozen=True)
class Learned:
    """Everything that is stored for a learned task.

    Attributes
    ----------
    heads
        The heads that were changed by training this task, by task name: the head of this
        task, and perhaps the heads of earlier tasks.
    state
        The state of the method after this task: tensors and JSON values.
    digests
        The SHA-256 of each split of the task's data.
    gaussians
        Gaussians over the combined model's features, computed right after the task was
        learned; None unless heads are aligned.
    validation
        The fit of the task's Gaussian classes to its validation examples; None unless a
        temperature is fitted.
    """

    classes: tuple[str, ...]
    adapter: Adapter
    heads: dict[str, dict[str, Tensor]]
    statistics: Statistics
    state: dict[str, Any]
    digests: dict[str, str]
    gaussians: Gaussians | None = None
    validation: Validation | None = None

    @property
    def name(self) -> str:
        """The name of the task."""
        return self.adapter.name


@dataclass(frozen=True)
class System:
    """A backbone, the tasks that it has learned in order, and the rule that combines them.

    The backbone contains the heads as they are after all tasks. An earlier system
    (`until`) may need older versions of the heads, which the backbone contains inside
    `loaded`.

    Attributes
    ----------
    shares_head
        True if all tasks share one head.
    settings
        The settings of the task posterior.
    """

    backbone: Backbone
    learned: tuple[Learned, ...]
    rule: Rule
    shares_head: bool = False
    settings: PosteriorSettings = PosteriorSettings()

    @property
    def tasks(self) -> list[str]:
        """The names of the learned tasks."""
        return list(self.classes)

    @cached_property
    def classes(self) -> Classes:
        """The classes of each learned task, by task name."""
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
        """The task posterior over the learned tasks."""
        statistics = {task.name: task.statistics for task in self.learned}
        return TaskPosterior(
            statistics,
            shrinkage=self.settings.shrinkage,
            temperature=self.temperature,
            features=self.settings.features,
            covariance=self.settings.covariance,
        )

    @cached_property
    def temperature(self) -> float:
        """The temperature of the task posterior, which may be fitted on validation examples."""
        if self.settings.temperature != "fitted":
            return self.settings.temperature
        validations = [task.validation for task in self.learned if task.validation]
        return fitted_temperature(validations)

    @cached_property
    def known(self) -> KnownInputs:
        """The inputs that the learned tasks have taught the system.

        Raises
        ------
        RunError
            A task has stored no distances, because no temperature was fitted.
        """
        validations: dict[str, Validation] = {}
        for task in self.learned:
            if task.validation is None:
                raise RunError(
                    "The run cannot tell which inputs are unknown: it has stored no distances of "
                    "validation examples. Learn it with `posterior: {temperature: fitted}` "
                    "(`--set posterior.temperature=fitted`)."
                )
            validations[task.name] = task.validation
        statistics = {task.name: task.statistics for task in self.learned}
        return KnownInputs(statistics, validations, features=self.settings.features)

    @cached_property
    def combined(self) -> Combined:
        """The model that the rule builds from the adapters; before the first task, the backbone."""
        if not self.learned:
            return Combined(TaskVector({}))
        adapters = [task.adapter for task in self.learned]
        return combine(adapters, self.rule)

    # -- the backbone

    @contextlib.contextmanager
    def loaded(self) -> Iterator[None]:
        """Load the heads as they were after the last learned task, while a `with` block runs.

        When the block ends, the previous heads and the modes of all modules are restored.
        """
        with evaluating(self.backbone), self.backbone.keeping():
            self.give_heads()
            yield

    def give_heads(self) -> None:
        """Load the heads as they were after the last learned task into the backbone, permanently.

        The head of an earlier task may have been trained further by later tasks. A shared
        head is taken from the last task.
        """
        # All heads are removed first, because some may belong to later tasks.
        for name in self.backbone.heads:
            self.backbone.close(name)
        if self.shares_head and self.learned:
            # All tasks share one module: it is added once, and then shared.
            first, *others = self.learned
            last = self.learned[-1]
            self.backbone.put(first.name, last.heads[last.name])
            for task in others:
                self.backbone.share(task.name)
            return
        for task in self.learned:
            for name, head in task.heads.items():
                # A task that was forgotten may have left a head that later tasks trained.
                if name in self.classes:
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
    ) -> Answers | Texts:
        """Answer the examples of a task with classes or with text, for each `task_id`.

        A routed rule has no single model that could write free text without knowing the
        task. The result then has no answers for the task id `none`.

        Parameters
        ----------
        among
            The tasks whose classes are possible answers; each must have a head. By
            default, all learned tasks.
        combined
            A model to use instead of the rule's, such as a candidate in a search for its scale.

        Raises
        ------
        NotFinite
            The answers of the combined model are not finite numbers.
        """
        among = among or self.classes
        combined = combined or self.combined
        examples = self.backbone.encode(task.rows(split))
        log_weights = None
        if "posterior" in task_ids:
            log_weights = self._log_weights(examples, tasks=len(among))
        if not task.classes:
            return self._written(task, split, task_ids, combined, log_weights)
        if log_weights is not None:
            # Tasks that are answered with free text have no classes.
            closed = [number for number, classes in enumerate(among.values()) if classes]
            log_weights = log_weights[:, closed]
            if combined.picks:
                log_weights = settled(log_weights)
        among = {name: classes for name, classes in among.items() if classes}
        # With weights, a routed model takes a single pass, but its answers are then valid
        # only for `posterior`: the other task ids need a separate pass for each task.
        only_posterior = set(task_ids) == {"posterior"}
        logits = task_logits(
            self.backbone,
            combined,
            examples,
            _needed(task, task_ids, among),
            log_weights if only_posterior else None,
        )
        return self._chosen(
            task,
            examples,
            task_ids,
            logits=logits,
            among=among,
            log_weights=log_weights,
        )

    def _chosen(
        self,
        task: Task,
        examples: Examples,
        task_ids: Sequence[TaskId],
        *,
        logits: Mapping[str, Float[Tensor, "examples _"]],
        among: Classes,
        log_weights: Float[Tensor, "examples tasks"] | None,
    ) -> Answers:
        """Answer the examples of a task with classes, given the logits of all competing tasks."""
        # The task's own classes count even if it is not among the competing tasks.
        index = _index([*among.values(), task.classes])
        task_columns = torch.tensor(_columns(task.classes, index))
        competing = {name: logits[name] for name in among if name in logits}
        columns = [_columns(among[name], index) for name in competing]

        answered: dict[TaskId, Tensor] = {}
        confidence: dict[TaskId, Tensor] = {}
        for task_id in task_ids:
            if task_id == "given":
                chances = logits[task.name].softmax(1)
                answered[task_id] = task_columns[logits[task.name].argmax(1)]
            elif task_id == "none" and not self.backbone.has_heads:
                words = ranked_words(competing, columns)
                chances = words.softmax(1)
                answered[task_id] = words.argmax(1)
            else:
                # Without weights, all heads compete under one softmax.
                weights = log_weights if task_id == "posterior" else None
                chances = probabilities(competing, columns, weights)
                answered[task_id] = chances.argmax(1)
            confidence[task_id] = chances.amax(1)
        # Labels are indices within the task; answers are indices over all classes.
        true_labels = torch.tensor(examples.labels)
        return Answers(
            classes=tuple(index),
            true=task_columns[true_labels],
            answered=answered,
            metric=task.score,
            confidence=confidence,
        )

    def _written(
        self,
        task: Task,
        split: Split,
        task_ids: Sequence[TaskId],
        combined: Combined,
        log_weights: Float[Tensor, "examples tasks"] | None,
    ) -> Texts:
        """Answer the examples of a task with free text.

        Parameters
        ----------
        log_weights
            log p(t | x) of the learned tasks, in order; None if it is not needed.
        """
        examples = self.backbone.encode(task.rows(split))
        answered: dict[TaskId, list[str]] = {}
        if not combined.routed:
            texts = generated(self.backbone, combined, examples)
            answered = dict.fromkeys(task_ids, texts)
        if combined.routed and "given" in task_ids:
            answered["given"] = generated(self.backbone, combined, examples, task=task.name)
        if combined.routed and log_weights is not None:
            likeliest: list[int] = log_weights.argmax(1).tolist()
            picked = [self.tasks[number] for number in likeliest]
            answered["posterior"] = generated(self.backbone, combined, examples, picked=picked)
        return Texts(task.references(split), answered, task.score, task.sources(split))

    def confidence(self, examples: Examples) -> Float[Tensor, " examples"]:
        """Return the probability of the most likely class of each example, by all heads.

        The task is inferred by the task posterior, as in `Model.predict`.
        """
        log_weights = self._log_weights(examples, tasks=len(self.learned))
        if self.combined.picks:
            log_weights = settled(log_weights)
        logits = task_logits(self.backbone, self.combined, examples, self.classes, log_weights)
        index = _index(list(self.classes.values()))
        columns = [_columns(classes, index) for classes in self.classes.values()]
        return probabilities(logits, columns, log_weights).amax(1)

    def likeliest(self, examples: Examples) -> list[str]:
        """Return the most likely task of each example, according to the task posterior."""
        numbers = self._log_weights(examples, tasks=len(self.learned)).argmax(1).tolist()
        return [self.learned[number].name for number in numbers]

    def _log_weights(self, examples: Examples, *, tasks: int) -> Float[Tensor, "examples tasks"]:
        """Return log p(t | x); before the first task, all tasks are equally likely."""
        if not self.learned:
            shape = (len(examples), tasks)
            return torch.full(shape, 1 / tasks).log()
        described = describe(self.backbone, examples)
        return self.posterior.log_prob(described)


def _needed(task: Task, task_ids: Sequence[TaskId], among: Classes) -> Classes:
    """Return the classes whose logits are needed to answer the examples of a task."""
    if set(task_ids) == {"given"}:
        return {task.name: task.classes}
    # A dictionary, because the task is usually one of the others.
    return {**among, task.name: task.classes}


def _columns(classes: Sequence[str], index: Mapping[str, int]) -> list[int]:
    return [index[label] for label in classes]


def _index(classes: Sequence[tuple[str, ...]]) -> dict[str, int]:
    """Return an index for each class, in order of first appearance.

    Classes with the same name in several tasks count as one.
    """
    index: dict[str, int] = {}
    for of_task in classes:
        for name in of_task:
            index.setdefault(name, len(index))
    return index
