"""Examples that a language model generates for replay, as a method remembers them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeVar

from datasets import Dataset

from perdure.data.exemplars import Strategy
from perdure.data.task import Rows, Task, TaskRows
from perdure.errors import InputError, RunError
from perdure.learning.method import Need
from perdure.learning.snapshot import State, size_of
from perdure.methods.parts.sampled import Pair, best_answers, own_examples
from perdure.models.backbone import Backbone
from perdure.models.language import LanguageModel

Source = Literal["data", "own", "on_policy"]
"""The origin of what is replayed: see `replay`."""
T = TypeVar("T")
UNKNOWN = "?"
"""The text that stands for a generated one in a dry run, which generates nothing."""
# `replay` has null as the default of both, so that runs of older versions can go on.
CANDIDATES = 4
TEMPERATURE = 0.7


@dataclass
class Generated:
    """The generated examples of each task: answers and, if they are generated too, prompts.

    Attributes
    ----------
    answers
        The answers by task, in the order of the stored or generated prompts.
    prompts
        The prompts of tasks of which no examples are stored.
    scores
        The name of each task's score, which an unavailable task does not have.
    """

    answers: dict[str, list[str]] = field(default_factory=dict)
    prompts: dict[str, list[str]] = field(default_factory=dict)
    scores: dict[str, str] = field(default_factory=dict)

    @property
    def size(self) -> int:
        """The size of all texts in bytes."""
        return size_of(self.answers) + size_of(self.prompts)

    def rows(self, tasks: Mapping[str, tuple[str, ...]], kept: Rows) -> Rows:
        """Return the examples of tasks, given by their classes, with the generated answers.

        Parameters
        ----------
        kept
            The stored examples, whose right answers are left out.

        Raises
        ------
        RunError
            There is not one answer for each prompt.
        """
        stored = {rows.task: rows.data for rows in kept}
        generated: Rows = []
        for task, classes in tasks.items():
            answers = self.answers.get(task)
            if not answers:
                continue
            prompts = stored.get(task)
            if prompts is None:
                prompts = Dataset.from_dict({"text": self.prompts.get(task, [])})
            if len(prompts) != len(answers):
                raise RunError(
                    f"The run has {len(answers)} generated answers to the {len(prompts)} stored "
                    f"prompts of `{task}`: it is damaged."
                )
            known = [name for name in ("label", "target") if name in prompts.column_names]
            data = prompts.remove_columns(known).add_column("target", answers)  # pyright: ignore
            generated.append(TaskRows(task, data, classes))
        return generated

    def of_tasks(self, tasks: Sequence[str]) -> "Generated":
        """Return the examples of the given tasks, leaving out those of forgotten tasks."""

        def some(values: dict[str, T]) -> dict[str, T]:
            return {task: value for task, value in values.items() if task in tasks}

        return Generated(some(self.answers), some(self.prompts), some(self.scores))

    def with_task(self, task: str, pairs: Sequence[Pair]) -> "Generated":
        """Return the examples with the prompts and answers of one more task."""
        prompts = [prompt for prompt, _ in pairs]
        answers = [answer for _, answer in pairs]
        return Generated(
            self.answers | {task: answers}, self.prompts | {task: prompts}, self.scores
        )

    def state(self) -> State:
        """Return the examples as a value of a method's state."""
        return {"generated": [self.answers, self.prompts, self.scores]}

    @classmethod
    def of(cls, state: State) -> "Generated":
        """Restore the examples from a method's state; the result is empty if it has none.

        Raises
        ------
        RunError
            The state is damaged.
        """
        try:
            answers, prompts, scores = state.get("generated", ({}, {}, {}))
            for texts in [*answers.values(), *prompts.values(), list(scores.values())]:
                if not all(isinstance(text, str) for text in texts):
                    raise TypeError("a text is none")
            return cls(dict(answers), dict(prompts), dict(scores))
        except (TypeError, ValueError, AttributeError) as error:
            raise RunError(f"The examples stored in the run are damaged ({error}).") from error


@dataclass(frozen=True)
class Generation:
    """The settings of `replay` for generated examples, which it explains."""

    source: Source | None
    candidates: int | None
    select: Literal["score", "likelihood"] | None
    temperature: float | None

    @property
    def needs(self) -> frozenset[Need]:
        """The requirements for generating; empty if nothing is generated."""
        if self.source == "own":
            return frozenset({"words", "causal", "texts"})
        if self.source == "on_policy":
            return frozenset({"words"})
        return frozenset()

    @property
    def instead(self) -> str:
        """A sentence about what to do without them; empty if nothing is generated."""
        if self.source == "own":
            return (
                "Instead of `source: own`, use `source: on_policy` with any language model, or "
                "`source: data` with any model."
            )
        if self.source == "on_policy":
            return "Use `source: data` instead of `source: on_policy`."
        return ""

    def check(self, strategy: Strategy) -> None:
        """Raise `InputError` if a setting is out of its range, or is not used."""
        if self.source == "own" and strategy != "balanced":
            raise InputError(
                f"`strategy: {strategy}` chooses which examples to store, but `source: own` stores "
                "none: leave one of them out."
            )
        if self.candidates is not None and self.candidates < 1:
            raise InputError(
                f"`candidates` is {self.candidates}, so `replay` has no answers to choose from: "
                "give at least 1."
            )
        if self.temperature is not None and self.temperature <= 0:
            raise InputError(
                f"`temperature` is {self.temperature:g}, but must be greater than 0. For the most "
                "likely answers, choose a small one such as 0.01."
            )

        unused = [] if self.source == "on_policy" else ["candidates", "select"]
        if not self.needs:
            unused.append("temperature")
        for name in unused:
            if getattr(self, name) is not None:
                users = "`on_policy` or `own`" if name == "temperature" else "`on_policy`"
                raise InputError(
                    f"`{name}` of `replay` is used only with the source {users}, but the "
                    f"source is `{self.source or 'data'}`: leave it out, or choose another source."
                )

    @property
    def heat(self) -> float:
        """The temperature, which has a default."""
        return TEMPERATURE if self.temperature is None else self.temperature

    def answers(
        self, kept: Rows, scores: Mapping[str, str], backbone: Backbone
    ) -> dict[str, list[str]]:
        """Sample answers to all stored prompts, and return the best one for each, by task.

        Parameters
        ----------
        kept
            The stored examples of all tasks.
        scores
            The name of each task's score.
        """
        assert isinstance(backbone, LanguageModel)
        answers: dict[str, list[str]] = {}
        for rows in kept:
            answers[rows.task] = best_answers(
                backbone,
                rows,
                score=None if self.select == "likelihood" else scores[rows.task],
                candidates=CANDIDATES if self.candidates is None else self.candidates,
                temperature=self.heat,
            )
        return answers

    def examples(self, task: Task, count: int, backbone: Backbone) -> list[Pair]:
        """Generate at most `count` prompts of a task with their answers."""
        assert isinstance(backbone, LanguageModel)
        return own_examples(backbone, task, count, self.heat)
