"""Begin or continue a run with objects made in Python; `recipe.py` does it from a recipe."""

from dataclasses import replace
from pathlib import Path

from perdure.data.task import TaskStream
from perdure.evaluation.measure import Evaluation
from perdure.learning.method import Method
from perdure.learning.training import Training
from perdure.merging.rule_settings import Rule, RuleLike
from perdure.models.backbone import Backbone
from perdure.runs import story
from perdure.runs.folder import Run
from perdure.runs.job import Plan, check, settings_of
from perdure.runs.recipe import never_trained
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
    seed: int = 0,
    quiet: bool = True,
) -> Run:
    """Learn a stream of tasks by a method; after each, combine them by a rule and measure.

    A run that was stopped or killed continues when it is called again with the same settings
    and `output`, and comes to the same result, bit for bit (in the same environment). Ctrl-C,
    SIGTERM, SIGUSR1 and SIGHUP finish the step and save.

    Parameters
    ----------
    stream
        The tasks. Those that the run in `output` has already learned may come without their
        examples (`past_tasks`).
    rule
        A `Rule`, its name, or a mapping of `name` and settings; by default the method's usual
        one.
    output
        The run folder: new, empty, or that of this run.
    quiet
        Do not show progress.

    Returns
    -------
    Run
        The folder, from which everything can be read.

    Raises
    ------
    RunError
        Another process is writing the folder, or it belongs to a run with other settings.
    Stopped
        The run was asked to stop.
    """
    # A user may pass anything as the method: `check` says so, not an AttributeError here.
    usual_rule = getattr(method, "usual_rule", "last")
    plan = Plan(
        stream=stream,
        backbone=backbone,
        method=method,
        rule=Rule.of(usual_rule if rule is None else rule),
        training=training or Training(),
        evaluation=evaluation or Evaluation(),
        seed=seed,
    )
    check(plan)
    plan = replace(plan, never=never_trained(plan.evaluation, seed))
    check(plan)
    # The recipe cannot make these tasks again; their names show what the run was to learn.
    made_of = {
        "name": stream.name,
        "scenario": stream.scenario,
        "tasks_made_in_python": stream.names,
    }
    recipe = files.plain({"stream": made_of, **settings_of(plan)})
    story.run(replace(plan, recipe=recipe), Path(output), quiet=quiet)
    return Run(output)
