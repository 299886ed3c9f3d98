"""The measurement of a system: its tasks are combined and scored, and no file is written."""

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch

from perdure.data.task import Scenario, Task, TaskStream
from perdure.errors import InputError
from perdure.evaluation import general, open_set
from perdure.evaluation.answers import Answers, Texts
from perdure.evaluation.general import General, GeneralSetting
from perdure.evaluation.metrics import CALIBRATION_ERROR, GENERAL, UNKNOWN
from perdure.evaluation.open_set import Recognition, UnknownSetting
from perdure.evaluation.progress_bar import Progress
from perdure.evaluation.scales import Candidate, with_best_scale
from perdure.evaluation.score import TASK_IDS, TaskId
from perdure.evaluation.system import System
from perdure.merging.rule_settings import Rule
from perdure.seeds import derived


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Settings for the measurements made while a stream is learned.

    Parameters
    ----------
    task_ids
        How the task of a test example is determined: it is `given`, inferred by the task
        `posterior`, or unknown (`none`), in which case all heads compete.
    steps
        When to measure: after each task (`all`), after the `last` task only, or never
        (`none`; `perdure evaluate` can do it later).
    future
        Also measure tasks before they are learned, which forward transfer needs.
    general
        Also measure the abilities of a language model outside its tasks, before the first
        task and after each task: true, a file of plain text, or a mapping of `text` (the
        file), `tokens` (the number to predict, by default 2048) and `tasks` (entries as
        in a recipe's stream, for tasks that are never trained).
    """

    task_ids: tuple[TaskId, ...] = TASK_IDS
    steps: Literal["all", "last", "none"] = "all"
    future: bool = False
    general: GeneralSetting = None
    unknown: UnknownSetting = None

    def __post_init__(self):
        # Reject bad values before anything is loaded.
        general.source(self.general)
        open_set.source(self.unknown)

    @property
    def begins_before(self) -> bool:
        """True if something is measured before the first task."""
        return self.future or (bool(self.general) and self.steps != "none")

    def due(self, step: int, tasks: int) -> bool:
        """Return True if a measurement is due after `step` of `tasks` tasks have been learned."""
        if self.steps == "last":
            return step == tasks
        return self.steps == "all"


@dataclass(frozen=True)
class Score:
    """A value measured after `step` tasks, which is one row of `scores.csv`."""

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
        The rule as configured; its label appears in the scores.
    applied
        The rule with the scale that a search has chosen.
    candidates
        Each scale that the search tried, with its score.
    answers
        The answers to the test examples, by task name; tasks with missing examples are left out.
    scores
        The score of each task for each `task_id`, and all other measured values.
    seconds
        The duration of the measurement.
    recognised
        How well inputs that belong to no task are recognised, by the name of the score.
    """

    step: int
    rule: Rule
    applied: Rule
    candidates: list[Candidate]
    answers: Mapping[str, Answers | Texts]
    scores: list[Score]
    seconds: float
    recognised: Mapping[str, Recognition] = field(default_factory=dict)


def measure(
    system: System,
    stream: TaskStream,
    evaluation: Evaluation,
    seed: int = 0,
    *,
    never: Sequence[Task] = (),
    quiet: bool = True,
) -> Measurement:
    """Combine the tasks of a system and score them on test examples.

    The backbone is not changed. Tasks whose examples are missing get no score.

    Parameters
    ----------
    seed
        The seed for the untrained heads of future tasks, which `evaluation.future` needs.
    never
        The tasks from `evaluation.general`, which are never trained.
    """
    started = time.perf_counter()
    step = len(system.learned)
    tasks = measurable(stream, step, evaluation)
    elsewhere = general.source(evaluation.general)
    if not tasks and not elsewhere:
        return Measurement(
            step=step,
            rule=system.rule,
            applied=system.rule,
            candidates=[],
            answers={},
            scores=[],
            seconds=0.0,
        )
    answers: dict[str, Answers | Texts] = {}
    title = f"Measuring after {step} of {len(stream)} tasks"
    with system.loaded(), Progress(title, len(tasks), quiet=quiet) as progress:
        if evaluation.future:
            _give_fresh_heads(system, stream.tasks[step:], seed)
        # Inside `loaded`, because a search answers validation examples with the current heads.
        acting, candidates = with_best_scale(system, stream)
        # Before the first task every head is untrained: all tasks of the stream compete.
        among = acting.classes
        if not among:
            among = {task.name: task.classes for task in stream}
        for number, name in enumerate(tasks, start=1):
            answers[name] = acting.answer(
                stream.task(name),
                "test",
                evaluation.task_ids,
                among=among,
            )
            progress.to(number)
        besides: list[Score] = []
        if elsewhere:
            new = stream.tasks[step - 1] if step else None
            values = general.measured(acting, elsewhere, new, never)
            besides = _besides(system, values, stream.scenario)
        recognised: Mapping[str, Recognition] = {}
        if stream.unknown is not None and open_set.source(evaluation.unknown):
            recognised = open_set.measured(acting, stream, answers)
            besides += _unknown(system, recognised, stream.scenario)
        # A milestone: outside a terminal, this prints a line with the averages.
        progress.to(len(tasks), _averages(answers), reached=True)
    seconds = time.perf_counter() - started
    return Measurement(
        step=step,
        rule=system.rule,
        applied=acting.rule,
        candidates=candidates,
        answers=answers,
        scores=[*_scores(system, stream, evaluation, answers), *besides],
        seconds=round(seconds, 3),
        recognised=recognised,
    )


def _scores(
    system: System,
    stream: TaskStream,
    evaluation: Evaluation,
    answers: Mapping[str, Answers | Texts],
) -> Iterable[Score]:
    # A `task` stream promises the task's name. Without the name, it becomes class-incremental.
    unknown = "class" if stream.scenario == "task" else stream.scenario
    # Computed once per task, not once per row: the score, followed by the calibration error.
    values: dict[str, dict[str, dict[TaskId, float]]] = {}
    for task, of_task in answers.items():
        values[task] = {of_task.metric: of_task.scores()}
        # `perdure diagnose` measures the calibration of heads, which the posterior weights.
        if not system.backbone.has_heads:
            values[task][CALIBRATION_ERROR] = of_task.calibration_errors()
    for task_id in evaluation.task_ids:
        for task, of_task in values.items():
            for metric, by_way in of_task.items():
                if task_id not in by_way:
                    continue
                yield Score(
                    step=len(system.learned),
                    task=task,
                    scenario="task" if task_id == "given" else unknown,
                    task_id=task_id,
                    rule=system.rule.label,
                    metric=metric,
                    value=by_way[task_id],
                )


def _besides(system: System, values: General, scenario: Scenario) -> list[Score]:
    """Return rows for the results of `evaluation.general`, under names that no task can have."""
    named = [("text", "cross_entropy", values.cross_entropy)]
    if values.divergence is not None:
        named.append(("prompts", "divergence", values.divergence))
    named += [(task, score, value) for task, (score, value) in values.scores.items()]
    rows: list[Score] = []
    for name, metric, value in named:
        rows.append(
            Score(
                step=len(system.learned),
                task=f"{GENERAL}{name}",
                scenario=scenario,
                task_id=values.task_id,
                rule=system.rule.label,
                metric=metric,
                value=value,
            )
        )
    return rows


def _unknown(
    system: System, recognised: Mapping[str, Recognition], scenario: Scenario
) -> list[Score]:
    """Return rows for the results of `evaluation.unknown`, under names that no task can have."""
    rows: list[Score] = []
    for name, values in recognised.items():
        for metric, value in (("auroc", values.auroc), ("fpr95", values.fpr95)):
            rows.append(
                Score(
                    step=len(system.learned),
                    task=f"{UNKNOWN}{name}",
                    scenario=scenario,
                    task_id="posterior",
                    rule=system.rule.label,
                    metric=metric,
                    value=value,
                )
            )
    return rows


def measurable(stream: TaskStream, step: int, evaluation: Evaluation) -> list[str]:
    """Return the names of the tasks to measure after `step` tasks.

    Tasks whose examples are missing are left out.
    """
    tasks = stream.tasks if evaluation.future else stream.tasks[:step]
    return [task.name for task in tasks if not task.missing]


def check_search(stream: TaskStream, step: int, rule: Rule) -> None:
    """Raise `InputError` if a rule searches its scale, but validation examples are missing."""
    # Before the first task there is nothing to scale.
    missing = stream.until(step).missing if step else {}
    if not rule.searches or not missing:
        return
    name, reason = next(iter(missing.items()))
    raise InputError(
        f"The rule `{rule.label}` searches its scale on the validation examples of all tasks, "
        f"but those of `{name}` are missing: {reason} Put them back, or use a rule that needs "
        "none: `perdure run RUN --set rule=task_arithmetic` changes the rule of the run."
    )


def _averages(answers: Mapping[str, Answers | Texts]) -> str:
    """Format the average score for each `task_id`, with a note if tasks have different scores."""
    values: dict[TaskId, list[float]] = {}
    for of_task in answers.values():
        for task_id, score in of_task.scores().items():
            values.setdefault(task_id, []).append(score)
    averages: list[str] = []
    for task_id, scores in values.items():
        percent = 100 * sum(scores) / len(scores)  # a mean over tasks, not over examples
        averages.append(f"{task_id} {percent:.1f} %")
    said = ", ".join(averages)
    names = dict.fromkeys(of_task.metric for of_task in answers.values())
    return f"{said} (scores differ: {', '.join(names)})" if len(names) > 1 else said


def _give_fresh_heads(system: System, tasks: Iterable[Task], seed: int) -> None:
    """Give each future task the shared head, if there is one, or else an untrained head.

    Untrained heads are the same at each step, so that differences between steps are due
    to learning.
    """
    backbone = system.backbone
    # Forked: a measurement must not change the random numbers that training draws later.
    with torch.random.fork_rng(devices=[]):
        for task in tasks:
            if system.shares_head and backbone.heads:
                backbone.share(task.name)
                continue
            torch.manual_seed(derived(seed, task.name, "head"))
            backbone.open(task)
