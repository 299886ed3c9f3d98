"""Extend an existing run: measure it again, teach it more tasks, or make it forget one."""

import copy
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

from perdure import registry
from perdure.data.task import TaskStream
from perdure.errors import InputError, PerdureError, PerdureWarning, RunError, Stopped, UnknownName
from perdure.evaluation.measure import Measurement, check_search, measure
from perdure.evaluation.progress_bar import Progress
from perdure.learning import engine
from perdure.merging.rule_settings import Rule, RuleLike
from perdure.runs import backbones, more_data, story
from perdure.runs.export import check_exportable
from perdure.runs.folder import Run
from perdure.runs.forget import (
    Forgotten,
    check_boundaries,
    dependence,
    less,
    remove_last,
    traced,
    without,
)
from perdure.runs.job import Plan, check_examples
from perdure.runs.layout import Content, Settings, forgotten, is_run
from perdure.runs.model import Model
from perdure.runs.past import not_measured
from perdure.runs.recipe import Recipe
from perdure.runs.resume import check_same, has_more, restored
from perdure.runs.state import RunState, read
from perdure.runs.streams import never_trained, with_unknown
from perdure.runs.writer import writing
from perdure.settings import named, put
from perdure.storage.staging import check_free

# -- measure again


def evaluate_run(
    folder: str | Path,
    rule: RuleLike | None = None,
    settings: Sequence[str] = (),
    *,
    steps: Literal["all", "last"] = "all",
    stream: TaskStream | None = None,
    quiet: bool = True,
    trust: bool = False,
) -> Run:
    """Measure a finished run again, with its own rule or another, and add the scores to it.

    Tasks whose examples are gone or have changed are skipped, with a warning that names
    them; their earlier scores are kept.

    Parameters
    ----------
    rule
        A `Rule`, its name, or a mapping of `name` and settings; by default, the run's own rule.
    settings
        Settings of the rule, such as `scale=0.3`.
    steps
        `all` to measure after each task, `last` to measure only after the last one.
    stream
        The tasks, if they cannot be created from the run's recipe.
    quiet
        If True, do not show progress.
    trust
        Allow running Python files that the run's recipe names.

    Raises
    ------
    RunError
        The tasks are not those that the run learned, the run has not learned any, or no
        task has examples available.
    InputError
        The rule searches for its scale, and the examples needed for the search are missing.
    """
    _measured_again(folder, rule, settings, steps=steps, stream=stream, quiet=quiet, trust=trust)
    return Run(folder)


def _measured_again(
    folder: str | Path,
    rule: RuleLike | None,
    settings: Sequence[str],
    *,
    steps: Literal["all", "last"],
    stream: TaskStream | None = None,
    quiet: bool,
    trust: bool,
) -> Measurement:
    """Measure a run again, as `evaluate_run` does, and return the last measurement."""
    read(folder, trust=trust)
    with writing(folder) as writer:
        quiet = quiet or not writer.writes
        state = writer.state
        recipe = Recipe.parse(state.recipe)
        evaluation = recipe.make_evaluation()
        stream = with_unknown(stream or recipe.make_stream(state), evaluation, recipe.stream)
        backbone = recipe.make_backbone()
        other_rule = rule_of(state, rule, settings)
        system = restored(state, backbone, other_rule or recipe.make_rule(), stream)
        never = never_trained(evaluation, recipe.seed)
        last = len(system.learned)
        if not last:
            raise RunError(f"`{folder}` has learned no task yet, so there is nothing to measure.")
        _check_measurable(folder, stream.until(last), system.rule)
        # Before the first task, the model is the same for every rule.
        first = 0 if evaluation.begins_before and not other_rule else 1
        due = range(first if steps == "all" else last, last + 1)
        progress = Progress("The evaluation", len(due), quiet=quiet, bar=False)
        for number, step in enumerate(due, start=1):
            measurement = measure(
                system.until(step), stream, evaluation, recipe.seed, never=never, quiet=quiet
            )
            # Written after each step, so that stopping loses one step at most.
            writer.measurement(measurement, own=other_rule is None)
            progress.to(number, f"{number} of {len(due)} steps", reached=True)
    return measurement


def _check_measurable(folder: str | Path, learned: TaskStream, rule: Rule) -> None:
    """Warn about tasks whose examples are gone; raise an error if nothing is left to measure."""
    missing = learned.missing
    if len(missing) == len(learned):
        reason = next(iter(missing.values()))
        raise RunError(
            f"Nothing in `{folder}` can be measured, because no examples are available. {reason}"
        )
    check_search(learned, len(learned), rule)
    if missing:
        # The warning points to the caller of `_measured_again`.
        warnings.warn(not_measured(missing), PerdureWarning, stacklevel=3)


def rule_of(run: RunState, rule: RuleLike | None, settings: Sequence[str] = ()) -> Rule | None:
    """Return the given rule or the run's own, with `settings` applied; None if neither is given."""
    if rule is None and not settings:
        return None
    # A copy, since `put` changes nested mappings in place.
    section = copy.deepcopy(run.recipe["rule"])
    if rule is not None:
        section = rule.section if isinstance(rule, Rule) else rule
        registry.trust(section)
        name, options = named(section, "rule")
        section = {"name": name, **options}
    for setting in settings:
        put(section, setting)
    return Rule.of(section)


def try_rule(
    folder: str | Path,
    rule: RuleLike | None = None,
    settings: Sequence[str] = (),
    output: str | Path | None = None,
    *,
    trust: bool = False,
    quiet: bool = True,
) -> Run:
    """Measure a finished run with another rule and, given an `output`, export the combined model.

    Raises
    ------
    RunError
        The rule does not produce a single set of weights, or `output` already exists.
    """
    state = read(folder, trust=trust)
    other_rule = rule_of(state, rule, settings)
    if output:
        # Before measuring, which may take hours.
        check_free(Path(output))
        recipe = Recipe.parse(state.recipe)
        backbones.check_export(recipe.backbone)
        _, options = named(recipe.backbone, "backbone", key="model")
        check_exportable(other_rule or recipe.make_rule(), "model", options.get("dtype"))
    measurement = _measured_again(folder, rule, settings, steps="last", trust=trust, quiet=quiet)
    if output:
        # The scale is the one that a search has found, but the label is the one in the scores.
        applied = measurement.applied if other_rule else None
        label = measurement.rule.label if other_rule else None
        Model(folder, rule=applied, label=label, device="cpu").export(output)
    return Run(folder)


# -- learn more


def entry_of(splits: Mapping[str, str | None], values: Mapping[str, object]) -> Content:
    """Return a stream entry for a recipe that reads the user's own data.

    Parameters
    ----------
    splits
        The files for `train`, `validation` and `test`; None for a split without a file.
    values
        The other arguments of `read_tasks`; None for those that are not given. `text` is
        a list of at most two columns.

    Examples
    --------
    >>> files = {"train": "a.csv", "validation": None, "test": None}
    >>> entry_of(files, {"name": None, "text": ["body"]})
    {'data': 'a.csv', 'text': 'body'}
    >>> entry_of(files | {"test": "b.csv"}, {"name": None, "text": []})
    {'data': {'train': 'a.csv', 'test': 'b.csv'}, 'name': 'a'}
    """
    files = {split: file for split, file in splits.items() if file is not None}
    given = {name: value for name, value in values.items() if value not in (None, [])}
    text = given.get("text")
    if isinstance(text, Sequence) and len(text) == 1:
        given["text"] = text[0]
    if len(files) == 1:
        return {"data": files["train"], **given}
    # With several files, the task is named after its training data.
    name = {} if {"name", "task"} & given.keys() else {"name": Path(files["train"]).stem}
    return {"data": files, **given, **name}


def learn_more(
    folder: Path,
    entry: Mapping[str, object],
    *,
    backbone: str | None = None,
    seed: int | None = None,
    settings: Sequence[str] = (),
    trust: bool = False,
    quiet: bool = True,
) -> Run:
    """Learn the tasks of one more table, in an existing run or in a new one.

    Parameters
    ----------
    entry
        The arguments of `read_tasks`, including `data`.
    backbone, seed, settings
        Settings for a new run, whose default backbone is `minilm`. In a run that has
        already begun to learn, only `training` and `evaluation` can change.
    trust
        Allow running Python files that the run's recipe names.

    Raises
    ------
    InputError
        Another setting would change, or the run has already learned these tasks.
    """
    if not is_run(folder):
        values = {
            "stream": [dict(entry)],
            "backbone": more_data.backbone_or_usual(backbone),
            "seed": seed or 0,
        }
        return Recipe.parse(values, settings).run(folder, quiet=quiet)
    read(folder, trust=trust)
    with writing(folder) as writer:
        state = writer.state
        begun = bool(state.tasks) or state.begun is not None
        if begun:
            check_boundaries(state.recipe, "learn")
            more_data.check_unchanged(state.recipe, backbone, seed, settings)
        values = more_data.with_entry(state, entry, begun, backbone, seed)
        recipe = Recipe.parse(values, settings)
        plan = recipe.plan(run=state)
        if not has_more(state, plan):
            raise InputError(
                f"The run `{folder}` has already learned these tasks: {', '.join(state.tasks)}. "
                "If there are new examples in the same place, give them another task name, "
                "with `--task`."
            )
        plan = replace(plan, recipe=recipe.resolved(plan))
        try:
            story.run(plan, Path(folder), change=True, quiet=quiet)
        except Stopped:
            # The progress saved until then belongs to the new recipe.
            raise
        except BaseException:
            # If no task was learned, restore the recipe: the next attempt may use other data.
            if read(folder).tasks == state.tasks:
                writer.recipe(state.recipe)
            raise
    return Run(folder)


# -- forget


def forget(
    folder: str | Path,
    task: str,
    *,
    retrain_later: bool = False,
    stream: TaskStream | None = None,
    trust: bool = False,
    quiet: bool = True,
) -> Forgotten:
    """Remove a task from a run: its adapter, head and statistics, and what was measured with it.

    If tasks are isolated, the run is then the same, bit for bit, as if it had never
    learned the task. If later tasks were learned on top of it, they contain traces of it
    until they are learned again.

    Parameters
    ----------
    task
        A task that the run has learned or was going to learn. A task that was forgotten
        earlier can be given, too, to learn again the tasks that contain traces of it.
    retrain_later
        If True, learn the tasks that contain traces of it again.
    stream
        The tasks, if they cannot be created from the run's recipe; used only with `retrain_later`.
    trust
        Allow running Python files that the run's recipe names.

    Raises
    ------
    UnknownName
        The run has no such task.
    RunError
        Another process is writing to the run, or the examples needed for learning again
        have changed.
    Stopped
        The run was asked to stop. The task has been forgotten by then, and the run can be resumed.
    """
    if engine.count() > 1:
        raise InputError(
            "`forget` runs in a single process: start it without `accelerate launch` or `torchrun`."
        )
    read(folder, trust=trust)
    with writing(folder) as writer:
        state = writer.state
        _check_known(state, task)
        check_boundaries(state.recipe, "forget")
        why = dependence(state.recipe)
        recipe = without(state.recipe, task, state.tasks, leaves_traces=bool(why))
        left = less(state.tasks, task)
        starts = recipe.get("traces", {})
        traces = tuple(left[starts[task] :]) if task in starts else ()
        plan = None
        if traces and retrain_later:
            # Plan before removing anything: if examples are missing, the run remains unchanged.
            others = _without_task(stream, task)
            plan = _relearning(state, recipe, others, left, kept=starts[task])
        if task not in state.tasks and state.begun == task:
            # Training was stopped during this task: it has events and a checkpoint, but no folder.
            writer.trim_events(None, 0)
            writer.unfinished(None)
        writer.forget(recipe)
        if not plan:
            return Forgotten(task, traces, why, left=tuple(left))
        # In reverse order: if the process is killed in between, the first tasks remain.
        for name in reversed(traces):
            remove_last(writer.folder, name)
        older = {name: start for name, start in starts.items() if start < starts[task]}
        writer.recipe(traced(recipe, older))
        system = story.run(plan, writer.folder, quiet=quiet)
        return Forgotten(task, relearned=traces, left=tuple(system.tasks))


def _check_known(state: RunState, task: str) -> None:
    """Raise `UnknownName` unless a run has learned, forgotten or planned a task."""
    # In this order, because listing the planned tasks reads the data.
    if task in forgotten(state.recipe) or task in state.tasks or task in _planned(state):
        return
    raise UnknownName("task", task, state.tasks)


def _without_task(stream: TaskStream | None, task: str) -> TaskStream | None:
    if not stream:
        return stream
    return replace(stream, tasks=tuple(other for other in stream if other.name != task))


def _relearning(
    state: RunState,
    recipe: Settings,
    stream: TaskStream | None,
    left: Sequence[str],
    *,
    kept: int,
) -> Plan:
    """Return a checked plan for learning the tasks `left` again, except the first `kept` tasks."""
    plan = Recipe.parse(recipe).plan(stream, run=state)
    check_same([state.load_task(name) for name in left], plan.stream)
    count = len(plan.stream)
    due = [step for step in range(1, count + 1) if plan.evaluation.due(step, count)]
    check_examples(plan, kept, due)
    return plan


def _planned(state: RunState) -> list[str]:
    """Return the names of the tasks that the run is going to learn, as far as they are known."""
    if state.made_in_python:
        return state.recipe["stream"]["tasks_made_in_python"]
    try:
        return Recipe.parse(state.recipe).make_stream(state).names
    except RunError:
        # The stream needs code that the user has not trusted, which the error explains.
        raise
    except PerdureError:
        # The data is not available, so the planned tasks are unknown.
        return []
