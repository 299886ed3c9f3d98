"""Go on with a run that is there: measure it again, let it learn more, or let it forget."""

import copy
import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from perdure import registry
from perdure.data.task import TaskStream
from perdure.errors import InputError, PerdureError, PerdureWarning, RunError, Stopped, UnknownName
from perdure.evaluation.measure import Measurement, check_search, measure
from perdure.evaluation.progress_bar import Progress
from perdure.learning import engine
from perdure.merging.rule_settings import Rule, RuleLike
from perdure.runs import story
from perdure.runs.folder import Run
from perdure.runs.forget import Forgotten, dependence, less, remove_last, traced, without
from perdure.runs.job import Plan, check_examples
from perdure.runs.layout import forgotten, is_run
from perdure.runs.model import Model, check_exportable
from perdure.runs.past import not_measured
from perdure.runs.recipe import Recipe, own_stream
from perdure.runs.resume import check_same, has_more, restored
from perdure.runs.state import RunState, read
from perdure.runs.writer import writing
from perdure.settings import Section, named, put
from perdure.storage.staging import check_free


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
    """Measure a finished run again, by its own rule or another, and add the scores to it.

    Tasks whose examples are gone, or have changed, are left out, with a warning that names them; values of theirs
    that were measured before stay.

    Parameters
    ----------
    rule
        A `Rule`, its name, or a mapping of `name` and settings; by default the run's own.
    settings
        Of the rule, such as `scale=0.3`.
    stream
        The tasks, where the run's recipe does not say how they are made.
    quiet
        Do not tell how far it is.
    trust
        Whether Python files that the run's recipe names may be run.

    Raises
    ------
    RunError
        The tasks are not those that the run learned, it has learned none, or none of their examples are here.
    InputError
        The rule searches its scale, and examples for that are missing.
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
    """Do what `evaluate_run` does, and return what was measured after the last task."""
    if engine.count() > 1:
        raise InputError(
            "To measure is for one process: start it without `accelerate launch` or `torchrun`."
        )
    read(folder, trust=trust)
    with writing(folder) as writer:
        state = writer.state
        recipe = Recipe.parse(state.recipe)
        stream, backbone = stream or recipe.make_stream(state), recipe.make_backbone()
        other = rule_of(state, rule, settings)
        system = restored(state, backbone, other or recipe.make_rule(), stream)
        learned, evaluation = len(system.learned), recipe.make_evaluation()
        if not learned:
            raise RunError(f"`{folder}` has learned no task yet, so there is nothing to measure.")
        _check_measurable(folder, stream.until(learned), system.rule)
        first = (
            0 if evaluation.future and not other else 1
        )  # before the first task every rule is the same
        due = range(first if steps == "all" else learned, learned + 1)
        whole = Progress("The evaluation", len(due), quiet=quiet, bar=False)
        for number, step in enumerate(due, start=1):
            measurement = measure(system.until(step), stream, evaluation, recipe.seed, quiet=quiet)
            writer.measurement(measurement, own=other is None)
            whole.to(number, f"{number} of {len(due)} steps", reached=True)
    return measurement


def _check_measurable(folder: str | Path, learned: TaskStream, rule: Rule) -> None:
    """Warn of tasks whose examples are gone; raise if nothing can be measured without them."""
    missing = learned.missing
    if len(missing) == len(learned):
        reason = next(iter(missing.values()))
        raise RunError(
            f"Nothing of `{folder}` can be measured, because no examples are here. {reason}"
        )
    check_search(learned, len(learned), rule)
    if missing:
        warnings.warn(not_measured(missing), PerdureWarning, stacklevel=3)


def rule_of(run: RunState, rule: RuleLike | None, settings: Sequence[str] = ()) -> Rule | None:
    """A rule as it is given, or the run's own, with other settings; nothing if neither is asked for."""
    if rule is None and not settings:
        return None
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
    """Measure a finished run with another rule, and write its combined model if there is an `output`.

    Raises
    ------
    RunError
        The rule's model is no one set of weights, or there is something at `output`.
    """
    state = read(folder, trust=trust)
    other = rule_of(state, rule, settings)
    if output:
        check_free(Path(output))
        check_exportable(other or Recipe.parse(state.recipe).make_rule())
    measurement = _measured_again(folder, rule, settings, steps="last", trust=trust, quiet=quiet)
    if output:
        applied = measurement.applied if other else None  # with the scale that a search has found
        label = measurement.rule.label if other else None
        Model(folder, rule=applied, label=label, device="cpu").export(output)
    return Run(folder)


def entry_of(splits: Mapping[str, str | None], values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the entry of a recipe's stream for one's own data.

    Parameters
    ----------
    splits
        The files of `train`, `validation` and `test`; None where there is none.
    values
        The other arguments of `read_tasks`; None for those that are not given. `text` is a list of one or two columns.

    Examples
    --------
    >>> entry_of({"train": "a.csv", "validation": None, "test": None}, {"name": None, "text": ["body"]})
    {'data': 'a.csv', 'text': 'body'}
    >>> entry_of({"train": "a.csv", "validation": None, "test": "b.csv"}, {"name": None, "text": []})
    {'data': {'train': 'a.csv', 'test': 'b.csv'}, 'name': 'a'}
    """
    files = {split: file for split, file in splits.items() if file is not None}
    given = {name: value for name, value in values.items() if value not in (None, [])}
    if len(given.get("text", [])) == 1:
        given["text"] = given["text"][0]
    if len(files) == 1:
        return {"data": files["train"], **given}
    name = {} if {"name", "task"} & given.keys() else {"name": Path(files["train"]).stem}
    return {"data": files, **given, **name}


def learn_more(
    folder: Path,
    entry: Mapping[str, Any],
    *,
    backbone: str | None = None,
    seed: int | None = None,
    settings: Sequence[str] = (),
    trust: bool = False,
    quiet: bool = True,
) -> Run:
    """Learn the tasks of one more table: for a run that is there, or for a new one (by default on `minilm`).

    Parameters
    ----------
    entry
        The arguments of `read_tasks`, with `data`.
    backbone, seed, settings
        For a new run. Of one that has learned something, only `training` and `evaluation` can be changed.
    trust
        Whether Python files that the run's recipe names may be run.

    Raises
    ------
    InputError
        Something else is to be changed, or the run has learned these tasks already.
    """
    if not is_run(folder):
        values = {"stream": [dict(entry)], "backbone": _chosen(backbone), "seed": seed or 0}
        return Recipe.parse(values, settings).run(folder, quiet=quiet)
    read(folder, trust=trust)
    with writing(folder) as writer:
        state = writer.state
        begun = bool(state.tasks) or state.begun is not None
        if begun:
            _check_unchanged(state.recipe, backbone, seed, settings)
        recipe = Recipe.parse(_with(state, entry, begun, backbone, seed), settings)
        plan = recipe.plan(run=state)
        if not has_more(state, plan):
            raise InputError(
                f"The run `{folder}` has learned these tasks already: {', '.join(state.tasks)}. If there are new "
                "examples in the same place, name them as a task of their own, with `--task`."
            )
        try:
            story.run(
                replace(plan, recipe=recipe.resolved(plan)), Path(folder), change=True, quiet=quiet
            )
        except Stopped:
            raise
        except BaseException:
            if (
                read(folder).tasks == state.tasks
            ):  # nothing came of it: the next attempt may name others
                writer.recipe(state.recipe)
            raise
    return Run(folder)


def forget(
    folder: str | Path,
    task: str,
    *,
    retrain_later: bool = False,
    stream: TaskStream | None = None,
    trust: bool = False,
    quiet: bool = True,
) -> Forgotten:
    """Remove a task from a run: its adapter, its head, its statistics, and what was measured of it or with it.

    Where tasks are isolated, the run is then the one, bit for bit, that never learned it. Where later tasks were
    learned on top of it, something of it remains in them, until they are learned again.

    Parameters
    ----------
    task
        One that the run has learned, or was to learn; or one that was forgotten, to learn again what it left traces in.
    retrain_later
        Learn the tasks again in which something of it would remain.
    stream
        The tasks, where the run's recipe does not say how they are made; for `retrain_later`.
    trust
        Whether Python files that the run's recipe names may be run.

    Raises
    ------
    UnknownName
        The run has no such task.
    RunError
        Another process is writing the run, or the examples for learning again are not those of before.
    Stopped
        The run was asked to stop. The task is forgotten, and the run can go on.
    """
    if engine.count() > 1:
        raise InputError(
            "`forget` is for one process: start it without `accelerate launch` or `torchrun`."
        )
    read(folder, trust=trust)
    with writing(folder) as writer:
        state = writer.state
        recipe, names = state.recipe, state.tasks
        if task not in forgotten(recipe) and task not in names and task not in _planned(state):
            raise UnknownName("task", task, names)
        why = dependence(recipe)
        recipe = without(recipe, task, names, leaves_traces=bool(why))
        left, places = less(names, task), recipe.get("traces", {})
        traces = tuple(left[places[task] :]) if task in places else ()
        plan = None
        if traces and retrain_later:
            stream = stream and replace(
                stream, tasks=tuple(other for other in stream if other.name != task)
            )
            plan = _relearning(state, recipe, stream, left, kept=places[task])
        if task not in names and state.begun == task:
            writer.trim_events(None, 0)
            writer.unfinished(None)
        writer.forget(recipe)
        if not plan:
            return Forgotten(task, traces, why, left=tuple(left))
        for name in reversed(traces):
            remove_last(writer.folder, name)
        writer.recipe(traced(recipe, {name: n for name, n in places.items() if n < places[task]}))
        system = story.run(plan, writer.folder, quiet=quiet)
        return Forgotten(task, relearned=traces, left=tuple(system.tasks))


def _relearning(
    state: RunState,
    recipe: dict[str, Any],
    stream: TaskStream | None,
    left: Sequence[str],
    *,
    kept: int,
) -> Plan:
    """Return what is needed to learn all tasks that are `left` again but for the first `kept`, checked beforehand."""
    plan = Recipe.parse(recipe).plan(stream, run=state)
    check_same([state.load_task(name) for name in left], plan.stream)
    steps = range(1, len(plan.stream) + 1)
    check_examples(
        plan, kept, [step for step in steps if plan.evaluation.due(step, len(plan.stream))]
    )
    return plan


def _planned(state: RunState) -> list[str]:
    """Return the names of the tasks that the run is to learn, if they can be had."""
    if state.made_in_python:
        return state.recipe["stream"]["tasks_made_in_python"]
    try:
        return Recipe.parse(state.recipe).make_stream(state).names
    except RunError:  # it needs code that is not trusted: that is no reason to know less of the run
        raise
    except PerdureError:  # the data is not here
        return []


# -- the recipe of a run that learns more


def _chosen(backbone: str | None) -> str:
    """The backbone that is asked for. An empty name is none: a script may have lost it."""
    return "minilm" if backbone is None else backbone


def _with(
    state: RunState, entry: Mapping[str, Any], begun: bool, backbone: str | None, seed: int | None
) -> dict[str, Any]:
    """A run's recipe with one more table."""
    before = state.recipe
    gone, stream = forgotten(before), before["stream"]
    if (
        not begun and isinstance(stream, list) and len(stream) <= 1 and not gone
    ):  # an attempt that came to nothing
        return {**before, "stream": [dict(entry)], "backbone": _chosen(backbone), "seed": seed or 0}
    values = {**before, "stream": _entries(stream, entry, gone, state.tasks)}
    if not isinstance(stream, list):
        values["scenario"] = Recipe.parse({**before, "forgotten": []}).make_stream(state).scenario
    if gone:  # what is learned again is no longer forgotten
        values["forgotten"] = [name for name in gone if name not in own_stream([entry]).names]
    if not begun:
        values |= {"backbone": backbone} if backbone else {}
        values |= {"seed": seed} if seed is not None else {}
    return values


def _check_unchanged(
    before: Mapping[str, Any], backbone: str | None, seed: int | None, settings: Sequence[str]
) -> None:
    fixed = {
        "--backbone": (backbone, before["backbone"]["model"]),
        "--seed": (seed, before["seed"]),
    }
    for option, (given, used) in fixed.items():
        if given not in (None, used):
            raise InputError(
                f"The run began with `{option} {used}`; it cannot go on with `{given}`."
            )
    for setting in settings:
        if setting.startswith("training.heads"):
            raise InputError(
                f"`--set {setting}`: the heads of a run that has begun stay as they are."
            )
        if not setting.startswith(("training.", "evaluation.")):
            raise InputError(
                f"`--set {setting}`: of a run that has begun only `training` and `evaluation` can change."
            )


def _entries(
    stream: Section | list[dict[str, Any]],
    entry: Mapping[str, Any],
    gone: Sequence[str],
    taken: Sequence[str],
) -> list[dict[str, Any]]:
    """A run's stream with one more entry, of which tasks that were forgotten are learned again, behind the others."""
    if not isinstance(stream, list):
        name, options = named(stream, "stream")
        stream = [{"benchmark": name, **options}]
    plain = [{key: value for key, value in old.items() if key != "without"} for old in stream]
    new = own_stream([entry]).names
    again = [name for name in new if name in gone]
    if not again:
        # the same entry is there already if an earlier attempt stopped before all of its tasks were finished
        if _spelled_out(entry) in [_spelled_out(old) for old in plain]:
            return stream
        _check_names(new, taken)
        return [*stream, dict(entry)]
    kept = [name for name in new if name not in gone] if dict(entry) in plain else []
    before = [
        _without(old, again) if "benchmark" in old or old.get("task") else old for old in stream
    ]
    return [*before, dict(entry) | ({"without": kept} if kept else {})]


def _spelled_out(entry: Mapping[str, Any]) -> dict[str, Any]:
    """An entry in the one form that all have which read the same: a path may be relative, and a default be given."""
    data = entry.get("data")
    if isinstance(data, str):
        data = os.path.abspath(data)
    elif isinstance(data, Mapping):
        data = {split: os.path.abspath(str(path)) for split, path in data.items()}
    return {"label": "label", "encoding": "utf-8", **entry, "data": data}


def _check_names(new: Sequence[str], taken: Sequence[str]) -> None:
    twice = [name for name in new if name in taken]
    if twice:
        raise InputError(
            f"The run has a task `{twice[0]}` already, which it learned from another table or folder. Give the new "
            "one another name, with `--task`."
        )


def _without(entry: dict[str, Any], names: Sequence[str]) -> dict[str, Any]:
    return entry | {"without": list(dict.fromkeys([*entry.get("without", []), *names]))}
