"""Perform a trial of tuning: learn the first tasks, and score them on validation examples."""

import functools
import json
from dataclasses import replace
from pathlib import Path

from perdure.data.task import TaskStream
from perdure.errors import InputError, TrainingError
from perdure.evaluation.measure import Evaluation
from perdure.evaluation.scales import with_best_scale
from perdure.evaluation.score import TaskId
from perdure.evaluation.system import System
from perdure.models.backbone import Backbone
from perdure.runs import story
from perdure.runs.job import Plan
from perdure.runs.recipe import Recipe
from perdure.storage import staging
from perdure.sweeps.executor import FirstTasks, Outcome


def perform(job: FirstTasks) -> Outcome:
    """Perform a job in a process of its own, which keeps the model for the next one."""
    return score(job, _plan(json.dumps(job.recipe), job.tasks))


# one plan only: all trials of a search have the same recipe
@functools.lru_cache(maxsize=1)
def _plan(recipe: str, tasks: int) -> Plan:
    return plan_of(Recipe.parse(json.loads(recipe)), tasks)


def plan_of(
    recipe: Recipe,
    tasks: int,
    stream: TaskStream | None = None,
    backbone: Backbone | None = None,
) -> Plan:
    """Return the plan for the first tasks of a recipe, which measures nothing on test examples.

    Parameters
    ----------
    stream, backbone
        The recipe's stream and backbone, if the caller has already created them.

    Raises
    ------
    InputError
        The stream has fewer tasks.
    """
    stream = stream or recipe.make_stream()
    if tasks > len(stream):
        raise InputError(f"`tasks` is {tasks}, but the stream has {len(stream)}.")
    plan = recipe.plan(stream, backbone)
    return replace(plan, stream=stream.until(tasks), evaluation=Evaluation(steps="none"))


def score(job: FirstTasks, plan: Plan, *, quiet: bool = True) -> Outcome:
    """Learn the tasks of a plan with the settings of a job, and score the result.

    The outcome has a reason instead of a score if training failed, because that is due to
    the settings.

    Parameters
    ----------
    plan
        The plan of the recipe without the job's settings.
    """
    changed = Recipe.parse(job.recipe, job.settings)
    plan = replace(plan, method=changed.make_method(), training=changed.make_training())
    plan = replace(plan, recipe=changed.resolved(plan))
    with staging.hidden_folder(Path(job.folder)) as folder:
        try:
            system = story.run(plan, folder / "trial", quiet=quiet)
        except TrainingError as error:  # the loss is not a number: the rate is too high
            return Outcome(job.trial, "finished", reason=str(error))
        value = validation_score(system, plan.stream, job.task_id)
    return Outcome(job.trial, "finished", scores={job.task_id: value})


def validation_score(system: System, stream: TaskStream, task_id: TaskId) -> float:
    """Return the mean of all tasks' scores on their validation examples.

    If the rule searches for its scale, the best scale is used.
    """
    acting, _ = with_best_scale(system, stream)
    scores = []
    for task in stream:
        answers = acting.answer(task, "validation", [task_id])
        scores.append(answers.scores()[task_id])
    return sum(scores) / len(scores)
