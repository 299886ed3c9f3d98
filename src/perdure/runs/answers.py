"""The answers of a run's language model: words that are ranked, or text that is written."""

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
    """An answer in words, its log-probability per token, and the task that it belongs to.

    Attributes
    ----------
    ended
        False if the model was stopped at `max_new_tokens`.
    """

    answer: str
    score: float
    task: str
    ended: bool = True

    def named(self, names: Mapping[str, str]) -> dict[str, object]:
        """Return the answer as cells of a row, under these names."""
        return {name: getattr(self, key) for key, name in names.items()}


@dataclass(frozen=True)
class Answerer:
    """A system whose backbone is a language model, which answers prompts.

    Attributes
    ----------
    task
        The task of all prompts, if it is known.
    """

    system: System
    backbone: LanguageModel
    task: str | None = None
    _tokens: dict[tuple[str, str], int] = field(default_factory=dict)

    def answers(self, rows: TaskRows, batch_size: int) -> list[Answer]:
        """Answer each row: with a label word if its task is closed, otherwise with free text.

        Without a task the combined model ranks the words of all closed tasks. The task posterior
        decides whether a closed task or a free-text task is meant, if the run has both, and which
        adapter answers, if the rule is routed.
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
        """The tasks that may be meant."""
        return [self.task] if self.task else self.system.tasks

    @property
    def _choices(self) -> dict[str, tuple[str, ...]]:
        """The words of each closed task that may be meant."""
        classes = self.system.classes
        return {name: classes[name] for name in self._names if classes[name]}

    def _log_weights(self, examples: Examples) -> Float[Tensor, "examples tasks"]:
        """Return log p(t | x), or the same for all tasks if nothing depends on it."""
        names = self._names
        words: list[str] = []
        for of_task in self._choices.values():
            words += of_task
        # Whose word it is says the word itself, unless two tasks share one.
        is_clear = len(self._choices) == len(names) and len(set(words)) == len(words)
        if len(names) == 1 or (is_clear and not self.system.combined.routed):
            return torch.zeros(len(examples), len(names))
        return self.system.posterior.log_prob(describe(self.backbone, examples))

    # -- closed tasks

    def _ranked(
        self, examples: Examples, log_weights: Float[Tensor, "examples tasks"]
    ) -> list[Answer]:
        """Answer with the most likely word of the closed tasks."""
        combined = self.system.combined
        choices = self._choices
        # Tasks that are answered with free text have no word to answer with.
        columns = [number for number, name in enumerate(self._names) if name in choices]
        log_weights = log_weights[:, columns]
        if combined.picks:
            log_weights = settled(log_weights)
        acting = log_weights if len(choices) > 1 else None
        logits = task_logits(self.backbone, combined, examples, choices, acting)
        # A routed rule has as many models as tasks, whose log p cannot be compared: they are
        # weighed by the posterior. A single model's log p can.
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
        """Return the word chosen as the answer, and its task.

        Parameters
        ----------
        shares
            For each task, log p of each of its words; of a routed rule p(t | x) p(word | t, x).
        """
        totals: dict[str, float] = {}
        owners: dict[str, tuple[float, str]] = {}
        for number, (task, words) in enumerate(self._choices.items()):
            for word, share in zip(words, shares[number].tolist(), strict=True):
                # A word that several tasks have is one word: their probabilities add up.
                totals[word] = totals.get(word, 0.0) + share if routed else share
                weight = share if routed else log_weights[number].item()
                if word not in owners or weight > owners[word][0]:
                    owners[word] = weight, task
        word = max(totals, key=totals.__getitem__)
        return word, owners[word][1]

    def _per_token(self, value: float, word: str, examples: Examples, row: int) -> float:
        """Return log p of a word per token, from its rank."""
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
        """Answer with free text, and report the most likely task as its task."""
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
