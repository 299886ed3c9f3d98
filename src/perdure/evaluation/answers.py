"""Answers to a task's examples, as classes or as free text, and the task's score for them."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from jaxtyping import Float, Int
from torch import Tensor

from perdure import registry
from perdure.errors import InputError
from perdure.evaluation.calibration import expected_calibration_error, reliability
from perdure.evaluation.score import TaskId


@dataclass(frozen=True)
class Texts:
    """The answers to a task's examples, as free text.

    Attributes
    ----------
    references
        All right answers to each example.
    answered
        The text that was answered, for each way to know the task.
    metric
        The name of the task's score.
    """

    references: list[list[str]]
    answered: dict[TaskId, list[str]]
    metric: str = "accuracy"

    def scores(self) -> dict[TaskId, float]:
        """Return the score between 0 and 1, for each way to know the task."""
        score = registry.find("score", self.metric)
        values: dict[TaskId, float] = {}
        for task_id, answers in self.answered.items():
            value = score(answers, self.references)
            # A score may be the user's own: what it returns is written into the run's folder.
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
                raise InputError(
                    f"The score `{self.metric}` returned {str(value)[:100]}, but must return a "
                    "number between 0 and 1."
                )
            values[task_id] = float(value)
        return values

    def worded(self) -> "Texts":
        """Return the answers themselves: they are words already."""
        return self

    def calibration_errors(self) -> dict[TaskId, float]:
        """Return nothing: free text has no confidence among choices."""
        return {}

    def counts(self, task_id: TaskId) -> dict[str, dict[str, int]]:
        """Return nothing: free texts are not confused with each other, as classes are."""
        return {}


@dataclass(frozen=True)
class Answers:
    """The answers to a task's examples, as indices into `classes`.

    Attributes
    ----------
    true
        The right class of each example.
    answered
        The class that was answered, for each way to know the task.
    metric
        The name of the task's score.
    confidence
        The probability of each answer among all that could be given; of language models only.
    """

    classes: tuple[str, ...]
    true: Int[Tensor, " examples"]
    answered: dict[TaskId, Int[Tensor, " examples"]]
    metric: str = "accuracy"
    confidence: Mapping[TaskId, Float[Tensor, " examples"]] = field(default_factory=dict)

    def scores(self) -> dict[TaskId, float]:
        """Return the score between 0 and 1, for each way to know the task."""
        if self.metric != "accuracy":
            return self.worded().scores()
        shares = {}
        for task_id, answered in self.answered.items():
            right = answered == self.true
            shares[task_id] = right.double().mean().item()
        return shares

    def calibration_errors(self) -> dict[TaskId, float]:
        """Return the expected calibration error, for each `task_id`."""
        errors = {}
        for task_id, confidence in self.confidence.items():
            right = self.answered[task_id] == self.true
            errors[task_id] = expected_calibration_error(reliability(confidence, right))
        return errors

    def worded(self) -> "Texts":
        """Return the answers as the names of their classes."""
        answered: dict[TaskId, list[str]] = {}
        for task_id, indices in self.answered.items():
            answered[task_id] = [self.classes[index] for index in indices.tolist()]
        references = [[self.classes[index]] for index in self.true.tolist()]
        return Texts(references, answered, self.metric)

    def counts(self, task_id: TaskId) -> dict[str, dict[str, int]]:
        """Return the confusion matrix: the number of answers by true and by answered class.

        Classes are named, and those that are true come in their order.

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
        # In the order of the classes, not in that of the examples.
        in_order: dict[str, dict[str, int]] = {}
        for name in self.classes:
            if name in counts:
                in_order[name] = counts[name]
        return in_order
