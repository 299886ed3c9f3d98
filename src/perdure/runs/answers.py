"""Answers of a run's language model: ranked label words or generated text."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from perdure.data.task import TaskRows
from perdure.evaluation.posterior import describe
from perdure.evaluation.score import answered_by, by_task, settled, task_logits
from perdure.evaluation.system import System
from perdure.models.examples import Examples
from perdure.models.language import LanguageModel


@dataclass(frozen=True)
class Answer:
    """A language model's answer, with its log-probability per token and the task it belongs to.

    Attributes
    ----------
    ended
        False if generation was cut off at `max_new_tokens`.
    """

    answer: str
    score: float
    task: str
    ended: bool = True

    def named(self, names: Mapping[str, str]) -> dict[str, object]:
        """Return the answer as the cells of a table row, under the given column names."""
        return {name: getattr(self, key) for key, name in names.items()}


@dataclass(frozen=True)
class Answerer:
    """A system with a language model as its backbone, used to answer prompts.

    Attributes
    ----------
    task
        The task of all prompts; None if it is unknown.
    """

    system: System
    backbone: LanguageModel
    task: str | None = None
    _tokens: dict[tuple[str, str], int] = field(default_factory=dict)

    def answers(self, rows: TaskRows, batch_size: int) -> list[Answer]:
        """Answer each row: with a label word if its task is closed, otherwise with free text.

        If the task is unknown, the combined model ranks the words of all closed tasks. If
        the run has both closed tasks and free-text tasks, the task posterior decides
        which kind a prompt belongs to. If the rule is routed, it also decides which
        adapter answers.
        """
        examples = self.backbone.prepare([rows], batch_size=batch_size)
        names = self._names
        log_weights = self._log_weights(examples)
        likeliest = [names[number] for number in log_weights.argmax(1).tolist()]
        closed = [row for row, name in enumerate(likeliest) if self.system.classes[name]]
        free = [row for row, name in enumerate(likeliest) if not self.system.classes[name]]
        answers: dict[int, Answer] = {}
        for numbers, answer in ((closed, self._ranked), (free, self._written)):
            if not numbers:
                continue
            some = examples
            if len(numbers) < len(examples):
                data = rows.data.select(numbers)
                some = self.backbone.prepare([rows._replace(data=data)], batch_size=batch_size)
            answers |= zip(numbers, answer(some, log_weights[numbers]), strict=True)
        return [answers[row] for row in range(len(examples))]

    @property
    def _names(self) -> list[str]:
        """The names of the tasks that a prompt may belong to."""
        return [self.task] if self.task else self.system.tasks

    @property
    def _choices(self) -> dict[str, tuple[str, ...]]:
        """The label words of each closed task that a prompt may belong to."""
        classes = self.system.classes
        return {name: classes[name] for name in self._names if classes[name]}

    def _log_weights(self, examples: Examples) -> Float[Tensor, "examples tasks"]:
        """Return log p(t | x) per example and task, or zeros if it cannot affect the answers."""
        names = self._names
        words: list[str] = []
        for of_task in self._choices.values():
            words += of_task
        # A word identifies its task, unless two tasks share the word.
        is_clear = len(self._choices) == len(names) and len(set(words)) == len(words)
        if len(names) == 1 or (is_clear and not self.system.combined.routed):
            return torch.zeros(len(examples), len(names))
        return self.system.posterior.log_prob(describe(self.backbone, examples))

    # -- closed tasks

    def _ranked(
        self, examples: Examples, log_weights: Float[Tensor, "examples tasks"]
    ) -> list[Answer]:
        """Answer each example with the most likely word of the closed tasks."""
        combined = self.system.combined
        choices = self._choices
        # Tasks that are answered with free text have no words to rank.
        columns = [number for number, name in enumerate(self._names) if name in choices]
        log_weights = log_weights[:, columns]
        if combined.picks:
            log_weights = settled(log_weights)
        acting = log_weights if len(choices) > 1 else None
        logits = task_logits(self.backbone, combined, examples, choices, acting)
        # A routed rule has one model per task, and log p of different models cannot be
        # compared: the posterior weights them. The log p of a single model can be
        # compared.
        shares = list(logits.values())
        if combined.routed:
            shares = by_task(logits, log_weights)
        answers = []
        for row in range(len(examples)):
            of_row = [values[row] for values in shares]
            word, task = self._likeliest(of_row, log_weights[row], combined.routed)
            value = logits[task][row, choices[task].index(word)].item()
            answers.append(Answer(word, self._per_token(value, word, examples, row), task))
        return answers

    def _likeliest(
        self,
        shares: Sequence[Float[Tensor, " words"]],
        log_weights: Float[Tensor, " tasks"],
        routed: bool,
    ) -> tuple[str, str]:
        """Return the word chosen as the answer to one example, and the task of that word.

        Parameters
        ----------
        shares
            For each task, a value for each of its words: p(t | x) p(word | t, x) if the
            rule is routed, otherwise the log-probability.
        """
        totals: dict[str, float] = {}
        owners: dict[str, tuple[float, str]] = {}
        for number, (task, words) in enumerate(self._choices.items()):
            for word, share in zip(words, shares[number].tolist(), strict=True):
                # A word shared by several tasks is one answer: its probabilities add up.
                totals[word] = totals.get(word, 0.0) + share if routed else share
                weight = share if routed else log_weights[number].item()
                if word not in owners or weight > owners[word][0]:
                    owners[word] = weight, task
        word = max(totals, key=totals.__getitem__)
        return word, owners[word][1]

    def _per_token(self, value: float, word: str, examples: Examples, row: int) -> float:
        """Return a word's log-probability per token, given the value by which it was ranked."""
        if self.backbone.normalized:
            return value
        joint: str = examples.inputs[row].joint  # pyright: ignore[reportAttributeAccessIssue]
        key = word, joint
        if key not in self._tokens:
            self._tokens[key] = len(self.backbone.prompts.answer(word, joint))
        return value / self._tokens[key]

    # -- free text

    def _written(
        self, examples: Examples, log_weights: Float[Tensor, "examples tasks"]
    ) -> list[Answer]:
        """Answer each example with free text, attributed to the most likely free-text task."""
        names = self._names
        free = [number for number, name in enumerate(names) if name not in self._choices]
        likeliest = [names[free[i]] for i in log_weights[:, free].argmax(1).tolist()]
        combined = self.system.combined
        texts = answered_by(
            self.backbone,
            combined,
            examples,
            self.backbone.generate_scored,
            task=self.task,
            picked=likeliest if combined.routed and not self.task else None,
        )
        answers = []
        for text, task in zip(texts, likeliest, strict=True):
            answers.append(Answer(text.text, text.score, task, text.ended))
        return answers
