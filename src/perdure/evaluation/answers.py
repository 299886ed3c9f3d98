"""Answers to the examples of a task, as classes or as free text, and their scores."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from jaxtyping import Float, Int
from torch import Tensor

from perdure import registry
from perdure.errors import InputError
from perdure.evaluation.calibration import expected_calibration_error, reliability
from perdure.evaluation.score import TaskId
from perdure.evaluation.task_score import takes_sources


@dataclass(frozen=True)
class Texts:
    """Free-text answers to the examples of a task.

    Attributes
    ----------
    references
        All correct answers to each example.
    answered
        The model's answer to each example, by `task_id`.
    metric
        The name of the task's score.
    sources
        The prompt of each example, for scores that take it.
    """

    references: list[list[str]]
    answered: dict[TaskId, list[str]]
    metric: str = "accuracy"
    sources: Sequence[str] = ()

    def scores(self) -> dict[TaskId, float]:
        """Return the score, a number between 0 and 1, for each `task_id`."""
        return dict(self._scores)

    @cached_property
    def _scores(self) -> dict[TaskId, float]:
        # Cached, because some scores take seconds for a test split, and each measurement
        # asks for them twice.
        score = registry.find("score", self.metric)
        more = {"sources": self.sources} if takes_sources(score) else {}
        values: dict[TaskId, float] = {}
        # If one model answers for every `task_id`, there is a single list, which is scored once.
        by_list: dict[int, float] = {}
        for task_id, answers in self.answered.items():
            if id(answers) not in by_list:
                value = score(answers, self.references, **more)
                by_list[id(answers)] = self._checked(value)
            values[task_id] = by_list[id(answers)]
        return values

    def _checked(self, value: object) -> float:
        # A score may be user-defined, and its result is written to the run folder.
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
            raise InputError(
                f"The score `{self.metric}` returned {str(value)[:100]}, but must return a "
                "number between 0 and 1."
            )
        return float(value)

    def worded(self) -> "Texts":
        """Return these answers unchanged, because they are already texts."""
        return self

    def calibration_errors(self) -> dict[TaskId, float]:
        """Return an empty dictionary, because free text has no confidence over a set of classes."""
        return {}

    def counts(self, task_id: TaskId) -> dict[str, dict[str, int]]:
        """Return an empty dictionary, because free text has no confusion matrix."""
        return {}


@dataclass(frozen=True)
class Answers:
    """Answers to the examples of a task, as indices into `classes`.

    Attributes
    ----------
    true
        The correct class of each example.
    answered
        The class that the model chose for each example, by `task_id`.
    metric
        The name of the task's score.
    confidence
        The probability of each answer among all possible answers, by `task_id`.
    """

    classes: tuple[str, ...]
    true: Int[Tensor, " examples"]
    answered: dict[TaskId, Int[Tensor, " examples"]]
    metric: str = "accuracy"
    confidence: Mapping[TaskId, Float[Tensor, " examples"]] = field(default_factory=dict)

    def scores(self) -> dict[TaskId, float]:
        """Return the score, a number between 0 and 1, for each `task_id`."""
        if self.metric != "accuracy":
            return self.worded().scores()
        shares = {}
        for task_id, answered in self.answered.items():
            right = answered == self.true
            shares[task_id] = right.double().mean().item()
        return shares

    def calibration_errors(self) -> dict[TaskId, float]:
        """Return the expected calibration error for each `task_id`."""
        errors = {}
        for task_id, confidence in self.confidence.items():
            right = self.answered[task_id] == self.true
            errors[task_id] = expected_calibration_error(reliability(confidence, right))
        return errors

    def worded(self) -> "Texts":
        """Return the answers as texts, which are the names of the classes."""
        answered: dict[TaskId, list[str]] = {}
        for task_id, indices in self.answered.items():
            answered[task_id] = [self.classes[index] for index in indices.tolist()]
        references = [[self.classes[index]] for index in self.true.tolist()]
        return Texts(references, answered, self.metric)

    def counts(self, task_id: TaskId) -> dict[str, dict[str, int]]:
        """Return the confusion matrix: the number of answers by true class and by answered class.

        The keys are class names. True classes are in the order of `classes`; those
        without examples are left out.

        Examples
        --------
        >>> import torch
        >>> answered = {"given": torch.tensor([1, 0, 1])}
        >>> answers = Answers(("no", "yes"), torch.tensor([1, 0, 0]), answered)
        >>> answers.scores(), answers.counts("given")
        ({'given': 0.666...}, {'no': {'no': 1, 'yes': 1}, 'yes': {'yes': 1}})
        """
        counts: dict[str, dict[str, int]] = {}
        pairs = zip(
            self.true.tolist(),
            self.answered[task_id].tolist(),
            strict=True,
        )
        for true, answered in pairs:
            of_class = counts.setdefault(self.classes[true], {})
            name = self.classes[answered]
            of_class[name] = of_class.get(name, 0) + 1
        # Use the order of the classes, not that of the examples.
        in_order: dict[str, dict[str, int]] = {}
        for name in self.classes:
            if name in counts:
                in_order[name] = counts[name]
        return in_order
