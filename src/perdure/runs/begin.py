"""Start or continue a run from Python objects; `recipe.py` does the same from a recipe."""

from dataclasses import replace
from pathlib import Path

from perdure.data.task import TaskStream
from perdure.evaluation.measure import Evaluation
from perdure.evaluation.posterior import PosteriorSettings
from perdure.learning.method import Method
from perdure.learning.training import Training
from perdure.merging.rule_settings import Rule, RuleLike
from perdure.models.backbone import Backbone
from perdure.runs import story
from perdure.runs.folder import Run
from perdure.runs.job import Plan, check, settings_of
from perdure.runs.streams import never_trained, with_unknown
from perdure.storage import files


def run(
    stream: TaskStream,
    backbone: Backbone,
    method: Method,
    rule: RuleLike | None = None,
    *,
    output: str | Path,
    training: Training | None = None,
    evaluation: Evaluation | None = None,
    posterior: PosteriorSettings | None = None,
    seed: int = 0,
    quiet: bool = True,
) -> Run:
    """Learn a stream of tasks with a method, and combine and measure them after each task.

    A run that was stopped or killed continues when `run` is called again with the same
    settings and the same `output`. In the same environment, the result is identical, bit
    for bit. On Ctrl-C, SIGTERM, SIGUSR1 or SIGHUP, the run finishes the current step,
    saves a checkpoint and stops.

    Parameters
    ----------
    stream
        The tasks to learn. Tasks that the run in `output` has already learned may be
        given without their examples (`past_tasks`).
    rule
        A `Rule`, its name, or a mapping of `name` and settings; by default, the method's
        usual rule.
    output
        The run folder: a new or empty folder, or that of the run to continue.
    quiet
        If True, do not show progress.

    Returns
    -------
    Run
        The run folder, with methods to read everything in it.

    Raises
    ------
    RunError
        Another process is writing to the folder, or the folder belongs to a run with
        other settings.
    Stopped
        The run was asked to stop.
    """
    # The user may pass anything as the method: let `check` report it, not an AttributeError here.
    usual_rule = getattr(method, "usual_rule", "last")
    plan = Plan(
        stream=stream,
        backbone=backbone,
        method=method,
        rule=Rule.of(usual_rule if rule is None else rule),
        training=training or Training(),
        evaluation=evaluation or Evaluation(),
        seed=seed,
        posterior=posterior or PosteriorSettings(),
    )
    check(plan)
    plan = replace(
        plan,
        never=never_trained(plan.evaluation, seed),
        stream=with_unknown(plan.stream, plan.evaluation),
    )
    check(plan)
    # The recipe cannot recreate these tasks; their names show what the run was meant to learn.
    made_of = {
        "name": stream.name,
        "scenario": stream.scenario,
        "tasks_made_in_python": stream.names,
    }
    recipe = files.plain({"stream": made_of, **settings_of(plan)})
    story.run(replace(plan, recipe=recipe), Path(output), quiet=quiet)
    return Run(output)
