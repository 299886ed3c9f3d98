"""Measure what was learned: combine it, score it, and add the values to the run."""

import dataclasses
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

from perdure.data.task import Task, TaskStream
from perdure.errors import InputError, RunError
from perdure.evaluation.posterior import TaskPosterior
from perdure.evaluation.progress_bar import Progress
from perdure.evaluation.score import TASK_IDS, Answers, Evaluator, TaskId
from perdure.merging.combine import Combined, combine
from perdure.merging.rule_settings import Rule
from perdure.models.backbone import Backbone
from perdure.runs import layout
from perdure.runs.folder import Run
from perdure.runs.resume import give_heads
from perdure.runs.task_folder import Learned
from perdure.seeds import derived
from perdure.vectors.task_vector import TaskVector


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
        """Whether it is measured after so many of the tasks."""
        return self.steps == "all" or (self.steps == "last" and step == tasks)


def measure(
    results: Run,
    learned: Sequence[Learned],
    stream: TaskStream,
    backbone: Backbone,
    rule: Rule,
    *,
    evaluation: Evaluation,
    own: bool = True,
    quiet: bool = True,
) -> None:
    """Combine the tasks learned and add one row of R for each way to know the task.

    Tasks whose examples are not in the stream get no value.

    `own` says whether the rule is the run's own: the one that `predict` and `export` will take.
    """
    due = measurable(stream, len(learned), evaluation)
    seen = [task.name for task in learned]
    last = bool(learned) and own and seen == results.tasks  # not an earlier step, when it is measured later
    if not due:
        if last:  # the run's rule may have changed, and is used all the same
            results.save_combined(described(rule))
        return
    started = time.perf_counter()
    give_heads(backbone, learned, shared=results.shares_head)
    if evaluation.future:
        _give_fresh_heads(backbone, stream.tasks[len(seen) :], results)
    posterior = TaskPosterior({task.name: task.statistics for task in learned}) if learned else None
    # before the first task every head is untrained, and every task as likely as the others
    evaluator = Evaluator(backbone, stream, seen or stream.names, posterior)
    found, candidates = rule, []
    if rule.searches and learned:
        found, candidates = evaluator.search_scale([task.adapter for task in learned], rule, stream.scenario)
    combined = combine([task.adapter for task in learned], found) if learned else Combined(TaskVector({}))
    answers: dict[str, Answers] = {}
    with Progress(f"Measuring after {len(seen)} of {len(stream)} tasks", len(due), quiet=quiet) as progress:
        for number, task in enumerate(due, start=1):
            answers[task] = evaluator.answers(combined, task, evaluation.task_ids)
            progress.to(number)
        progress.to(len(due), _averages(answers), reached=True)
    unknown = "class" if stream.scenario == "task" else stream.scenario
    about = {"rule": rule.label, "options": dict(found.options), "candidates": candidates}
    seconds = round(time.perf_counter() - started, 3)
    if last:
        results.save_combined(described(found) | {"label": rule.label, "candidates": candidates})
        counts = _counts(answers, evaluation.task_ids, _answers_before(results, rule, len(learned)))
        results.save_answers({"rule": rule.label, "step": len(learned), "answers": counts})
    # before the scores, with which alone it counts: so none is lost to a process that ends here
    results.event({"event": "evaluation", "step": len(learned), "seconds": seconds, **about})
    results.add_scores(
        {
            "step": len(learned),
            "task": task,
            "scenario": "task" if task_id == "given" else unknown,
            "task_id": task_id,
            "rule": rule.label,
            "metric": "accuracy",
            "value": value,
        }
        for task_id in evaluation.task_ids
        for task, value in ((task, answers[task].accuracy()[task_id]) for task in due)
    )


def _counts(answers: Mapping[str, Answers], task_ids: Sequence[TaskId], before: layout.Answers) -> layout.Answers:
    """Count how each class was answered, by the way to know the task and by task.

    Tasks that are not measured now, for their examples are gone, keep what was counted `before` of the same model.
    """
    counts = {}
    for task_id in task_ids:
        new = {task: of_task.counts(task_id) for task, of_task in answers.items()}
        counts[task_id] = before.get(task_id, {}) | new
    return counts


def _answers_before(results: Run, rule: Rule, step: int) -> layout.Answers:
    """Return how classes were answered when the same model was measured before."""
    try:
        return layout.answers(results.folder, rule=rule.label, step=step)
    except RunError:  # what is damaged there is derived, and replaced
        return {}


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


def described(rule: Rule) -> dict[str, Any]:
    """A rule as `combined.json` holds it, before a search."""
    return {"label": rule.label, **dataclasses.asdict(rule), "candidates": []}


def _averages(answers: Mapping[str, Answers]) -> str:
    """Say the average accuracy for each way to know the task."""
    totals: dict[TaskId, float] = {}
    for of_task in answers.values():
        for task_id, accuracy in of_task.accuracy().items():
            totals[task_id] = totals.get(task_id, 0.0) + accuracy
    return ", ".join(f"{task_id} {100 * total / len(answers):.1f} %" for task_id, total in totals.items())


def _give_fresh_heads(backbone: Backbone, tasks: Sequence[Task], results: Run) -> None:
    """Untrained heads for tasks to come, the same whenever they are measured; or the one that all tasks share."""
    seed, shared = results.recipe["seed"], results.shares_head
    with torch.random.fork_rng(devices=[]):
        for task in tasks:
            if shared and backbone.heads:
                backbone.share(task.name)
                continue
            torch.manual_seed(derived(seed, task.name, "head"))
            backbone.open(task)
