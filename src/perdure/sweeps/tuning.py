"""The protocol of a search for settings, its trials, and its result."""

from dataclasses import dataclass, field
from typing import NotRequired, TypedDict

from perdure.evaluation.score import TaskId


class Tried(TypedDict):
    """One trial of a search: a line of trials.jsonl.

    The score is measured on validation examples. It is None, with a `reason`, if training
    failed with these settings; or, with `state: failed`, if anything else did, in which
    case the trial is repeated when the search continues. An error that perdure does not
    expect has a `traceback`.
    """

    settings: dict[str, float]
    score: float | None
    seconds: float
    reason: NotRequired[str]
    state: NotRequired[str]
    traceback: NotRequired[str]


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """The rules for tuning, which are the same for all methods in a comparison.

    Parameters
    ----------
    tasks
        The number of tasks to learn, from the beginning of the stream.
    trials
        The number of settings to try, including those of the recipe.
    task_id
        The `task_id` with which validation examples are scored.
    lowest, highest
        The range of the learning rate, as multiples of the recipe's. The search is on a
        logarithmic scale.
    seed
        Seed for the search.
    parallel
        The number of trials that may be performed at the same time. The settings of a
        trial depend on the scores of those that are at least so far before it, however
        many are really performed at a time. A search keeps the number with which it began.
    """

    tasks: int = 2
    trials: int = 10
    task_id: TaskId = "posterior"
    lowest: float = 1 / 30
    highest: float = 10.0
    seed: int = 0
    parallel: int = 1


@dataclass
class Tuning:
    """The result of `tune`.

    Attributes
    ----------
    trials
        All trials, each with its `settings`, `score` (the average on validation examples;
        None if the trial failed, with a `reason`) and `seconds`.
    recipe
        The recipe with the best settings. Ties go to the settings that were tried first.
    """

    recipe: dict[str, object]
    trials: list[Tried] = field(default_factory=list)

    @property
    def best(self) -> Tried:
        """The trial with the highest score."""
        # a failed trial is worse than one that got every example wrong
        return max(
            self.trials, key=lambda trial: -1.0 if trial["score"] is None else trial["score"]
        )

    def lines(self) -> list[tuple[str, str]]:
        """Return each trial's score and settings as text, with the best trial first."""
        rows = []
        best_first = sorted(self.trials, key=lambda trial: -(trial["score"] or 0.0))
        for trial in best_first:
            score = trial["score"]
            percent = "failed" if score is None else f"{100 * score:.1f}"
            settings = []
            for name, value in trial["settings"].items():
                settings.append(f"{name}={value:g}")
            rows.append((percent, ", ".join(settings)))
        return rows
