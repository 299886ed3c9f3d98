"""Measure what was learned: combine it and score it. The values are returned, and nothing is written."""

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch

from perdure.data.task import Task, TaskStream
from perdure.errors import InputError
from perdure.evaluation.progress_bar import Progress
from perdure.evaluation.scales import with_best_scale
from perdure.evaluation.score import TASK_IDS, Answers, TaskId
from perdure.evaluation.system import System
from perdure.merging.rule_settings import Rule
from perdure.seeds import derived


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What is measured while a stream is learned.

    Parameters
    ----------
    task_ids
        How the task of a test example is known: `given`, by the task `posterior`, or not at all, with all heads
        `concatenated`.
    steps
        After `all` tasks, after the `last` only, or not at all (`none`; `perdure evaluate` does it later).
    future
        Also measure tasks before they are learned, which forward transfer needs.
    """

    task_ids: tuple[TaskId, ...] = TASK_IDS
    steps: Literal["all", "last", "none"] = "all"
    future: bool = False

    def due(self, step: int, tasks: int) -> bool:
        """Say whether it is measured after `step` of the tasks."""
        return self.steps == "all" or (self.steps == "last" and step == tasks)


@dataclass(frozen=True)
class Score:
    """One value, as a row of `scores.csv`: `step` tasks had been learned when it was measured."""

    step: int
    task: str
    scenario: str
    task_id: TaskId
    rule: str
    metric: str
    value: float


@dataclass(frozen=True)
class Measurement:
    """The answers and scores of a system after `step` tasks.

    Attributes
    ----------
    rule
        The rule as it was asked for; its label stands in the scores.
    applied
        The rule with the scale that a search found.
    candidates
        Each scale that the search tried, with its score.
    answers
        The answers to the test examples, by task: none where no examples are here.
    scores
        The accuracy for each way to know the task and each task.
    seconds
        The time that it took.
    """

    step: int
    rule: Rule
    applied: Rule
    candidates: list[dict[str, Any]]
    answers: Mapping[str, Answers]
    scores: list[Score]
    seconds: float


def measure(
    system: System, stream: TaskStream, evaluation: Evaluation, seed: int = 0, *, quiet: bool = True
) -> Measurement:
    """Combine what a system has learned and score it on test examples; its backbone is afterwards as before.

    Tasks whose examples are not in the stream get no value.

    Parameters
    ----------
    seed
        Seed of the untrained heads of tasks to come, with `evaluation.future`.
    """
    started = time.perf_counter()
    step = len(system.learned)
    tasks = measurable(stream, step, evaluation)
    if not tasks:
        return Measurement(step, system.rule, system.rule, [], {}, [], 0.0)
    answers: dict[str, Answers] = {}
    title = f"Measuring after {step} of {len(stream)} tasks"
    with system.loaded(), Progress(title, len(tasks), quiet=quiet) as progress:
        if evaluation.future:
            _give_fresh_heads(system, stream.tasks[step:], seed)
        acting, candidates = with_best_scale(system, stream)
        # before the first task every head is untrained, and every task as likely as the others
        among = acting.classes or {task.name: task.classes for task in stream}
        for number, name in enumerate(tasks, start=1):
            task = stream.task(name)
            answers[name] = acting.answer(task, "test", evaluation.task_ids, among=among)
            progress.to(number)
        progress.to(len(tasks), _averages(answers), reached=True)
    return Measurement(
        step=step,
        rule=system.rule,
        applied=acting.rule,
        candidates=candidates,
        answers=answers,
        scores=list(_scores(system, stream, evaluation, answers)),
        seconds=round(time.perf_counter() - started, 3),
    )


def _scores(
    system: System, stream: TaskStream, evaluation: Evaluation, answers: Mapping[str, Answers]
) -> Iterable[Score]:
    unknown = "class" if stream.scenario == "task" else stream.scenario
    accuracies = {task: of_task.accuracy() for task, of_task in answers.items()}
    for task_id in evaluation.task_ids:
        for task, accuracy in accuracies.items():
            yield Score(
                step=len(system.learned),
                task=task,
                scenario="task" if task_id == "given" else unknown,
                task_id=task_id,
                rule=system.rule.label,
                metric="accuracy",
                value=accuracy[task_id],
            )


def measurable(stream: TaskStream, step: int, evaluation: Evaluation) -> list[str]:
    """Return the names of the tasks that are measured after `step` tasks: those whose examples are here."""
    tasks = stream.tasks if evaluation.future else stream.tasks[:step]
    return [task.name for task in tasks if not task.missing]


def check_search(stream: TaskStream, step: int, rule: Rule) -> None:
    """Raise `InputError` if a rule is to search its scale after `step` tasks, and examples for that are missing."""
    missing = stream.until(step).missing if step else {}
    if not rule.searches or not missing:
        return
    name, reason = next(iter(missing.items()))
    raise InputError(
        f"The rule `{rule.label}` searches its scale on the validation examples of all tasks, but those of "
        f"`{name}` are not here: {reason} Put them back, or take a rule that needs none: `perdure run RUN --set "
        "rule=task_arithmetic` changes the run's."
    )


def _averages(answers: Mapping[str, Answers]) -> str:
    """Say the average accuracy for each way to know the task."""
    totals: dict[TaskId, float] = {}
    for of_task in answers.values():
        for task_id, accuracy in of_task.accuracy().items():
            totals[task_id] = totals.get(task_id, 0.0) + accuracy
    return ", ".join(
        f"{task_id} {100 * total / len(answers):.1f} %" for task_id, total in totals.items()
    )


def _give_fresh_heads(system: System, tasks: Iterable[Task], seed: int) -> None:
    """Add untrained heads for tasks to come, the same whenever they are measured; or the one that all tasks share."""
    backbone = system.backbone
    with torch.random.fork_rng(devices=[]):
        for task in tasks:
            if system.shares_head and backbone.heads:
                backbone.share(task.name)
                continue
            torch.manual_seed(derived(seed, task.name, "head"))
            backbone.open(task)
