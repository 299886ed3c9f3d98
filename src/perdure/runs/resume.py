"""Give a run's tasks back to a backbone, and find out where the run goes on."""

import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from perdure.data.task import Split, TaskStream, check_images
from perdure.errors import InputError, PerdureWarning, RunError
from perdure.evaluation.measure import measurable
from perdure.evaluation.system import Learned, System
from perdure.learning import engine
from perdure.learning.snapshot import Snapshot
from perdure.merging.rule_settings import Rule
from perdure.models import adapters
from perdure.models.backbone import Backbone
from perdure.models.heads import SEED
from perdure.runs import layout, task_folder, writer
from perdure.runs.changes import HARMLESS_IN_TRAINING, check_changes
from perdure.runs.job import Plan, check, check_examples, settings_of
from perdure.runs.past import changed, not_measured
from perdure.runs.state import RunState, read
from perdure.storage import files


def opened(output: Path, plan: Plan, *, change: bool = False) -> Plan:
    """Make the folder of a run, or take the one that is there, if its settings are those of the plan.

    Parameters
    ----------
    change
        Whether the settings may differ: the run then has those of the plan.

    Returns
    -------
    Plan
        With the recipe that the run has from now on.

    Raises
    ------
    InputError
        The name of a task is too long for the file system.
    RunError
        It is the folder of a run with other settings, such as touch what was learned.
    """
    check(plan)
    task_folder.check_names(output, plan.stream.names)
    if plan.recipe is None:
        return plan
    writer.create(output, plan.recipe)
    state, recipe = read(output), dict(plan.recipe)
    if replace(state, recipe=recipe).made_in_python:  # such a stream says itself which tasks it has
        forgotten = layout.forgotten(state.recipe)
        gone = [name for name in forgotten if name not in plan.stream.names]
        recipe |= {"forgotten": gone} if gone else {}
        recipe |= {"traces": state.recipe["traces"]} if state.recipe.get("traces") else {}
    if not change:
        check_changes(output, state.recipe, recipe)
    return replace(plan, recipe=recipe)


def resumed(state: RunState, plan: Plan) -> tuple[System, Snapshot | None, list[int]]:
    """Return what a run has learned, the state inside the task that it was learning, and the steps to be measured.

    The backbone is as it was left.

    Raises
    ------
    RunError
        The stream does not begin with the tasks that the run has learned.
    InputError
        Examples or heads that are needed for what is left to do are missing.
    """
    system = restored(state, plan.backbone, plan.rule, plan.stream)
    learned = system.learned
    if plan.training.alignment and any(task.gaussians is None for task in learned):
        raise InputError(
            "`alignment` must be on from the first task on, but the run has learned tasks without it."
        )
    plan.method.state = (
        dict(learned[-1].state) if learned else {}
    )  # it may have served another run before
    inside = _unfinished(state, plan)
    due = due_steps(state, plan)
    check_examples(plan, len(learned), due)
    check_images(plan.stream.tasks[len(learned) :])
    _check_texts(plan, len(learned), ["train", "validation", *(["test"] if due else [])])
    if plan.stream.missing and due and engine.first():
        warnings.warn(not_measured(plan.stream.missing), PerdureWarning, stacklevel=3)
    return system, inside, due


def restored(
    state: RunState, backbone: Backbone, rule: Rule, stream: TaskStream | None = None
) -> System:
    """Give the backbone the heads of a run's tasks and the last task's adapter, as they were left.

    Raises
    ------
    RunError
        The `stream` does not begin with the tasks that the run has learned, or their examples are others now; or the
        backbone is another model than that of the run.
    """
    check_model(state, backbone)
    learned = state.learned
    for task in learned:
        check_fits(backbone, task)
    if stream:
        check_same(learned, stream)
    if state.shares_head and len({task.classes for task in learned}) > 1:
        raise RunError(
            f"`{state.folder / 'recipe.yaml'}` says that the tasks share a head, but they have different classes. "
            "It is damaged or was changed."
        )
    adapters.detach(backbone.model)  # another run may have used this backbone before
    system = System(backbone, learned, rule, state.shares_head)
    system.give_heads()
    if learned:
        adapters.attach(backbone.model, learned[-1].adapter.config)
        adapters.write(backbone.model, learned[-1].adapter.parameters)
    return system


# -- what is left to do


def due_steps(state: RunState, plan: Plan) -> list[int]:
    """Return the steps that are to be measured, and are not yet."""
    tasks = len(plan.stream)
    steps = [step for step in range(1, tasks + 1) if plan.evaluation.due(step, tasks)]
    if plan.evaluation.future:
        steps.insert(0, 0)
    measured = _measured(state, plan)
    return [step for step in steps if step not in measured]


def has_more(state: RunState, plan: Plan) -> bool:
    """Return whether a run has tasks to learn, or something to measure, before it is what the plan says."""
    return state.tasks != plan.stream.names or bool(due_steps(state, plan))


def _measured(state: RunState, plan: Plan) -> set[int]:
    """Return the steps whose values are there: of each task that is due then, for each way to know the task."""
    rows = [row for row in state.scores if row["rule"] == plan.rule.label]
    values = {(row["step"], row["task"], row["task_id"]) for row in rows}

    def there(step: int) -> bool:
        due = measurable(plan.stream, step, plan.evaluation)
        return all((step, name, way) in values for name in due for way in plan.evaluation.task_ids)

    steps = {step for step in range(len(plan.stream) + 1) if there(step)}
    last = len(state.tasks)
    # the rule was another one meanwhile: how the tasks are combined has to be found again
    again = last in steps and last and state.combined["label"] != plan.rule.label
    return steps - {last} if again else steps


def _unfinished(state: RunState, plan: Plan) -> Snapshot | None:
    """Return the state inside the next task, if it was begun with the same settings and examples."""
    snapshot, learned = state.unfinished, len(state.tasks)
    if snapshot is None or learned == len(plan.stream):
        return None
    belongs_to = snapshot.about.get("belongs_to")
    if belongs_to == belonging(plan, plan.stream.until(learned + 1)):
        return snapshot
    if learned and belongs_to == belonging(plan, plan.stream.until(learned)):
        return None  # the process ended when it had saved the task, and before it had removed what was inside it
    message = "A task was being learned with other settings or examples when the run was stopped: it is begun again."
    warnings.warn(message, PerdureWarning, stacklevel=3)
    return None


def belonging(plan: Plan, seen: TaskStream) -> dict[str, Any]:
    """Return what has to be the same for the training of the last task `seen` to go on inside it."""
    settings = settings_of(plan)
    training = {
        key: value for key, value in settings["training"].items() if key not in HARMLESS_IN_TRAINING
    }
    same = {
        "method": settings["method"],
        "backbone": settings["backbone"],
        "seed": plan.seed,
        "training": training,
    }
    return files.plain({"tasks": {task.name: task.digests() for task in seen}, **same})


# -- checks


def check_model(state: RunState, backbone: Backbone) -> None:
    """Compare the backbone's files with those that the run began with, if it kept their hashes.

    Raises
    ------
    RunError
        They differ, so that what was learned does not fit them.
    """
    kept = layout.backbone(state.folder)
    if not kept or not backbone.files or not state.stands_on_a_model:
        return
    now = backbone.hashes
    differing = sorted(name for name in {*kept, *now} if kept.get(name) != now.get(name))
    if not differing:
        return
    names = ", ".join(f"`{name}`" for name in differing[:3]) + (", …" if len(differing) > 3 else "")
    verb = "differs" if len(differing) == 1 else "differ"
    raise RunError(
        f"`{backbone.source}` is not the model that the run `{state.folder}` began with: {names} {verb}. Put the "
        f"files of before back, or start a new run. (If you know that both answer alike, remove "
        f"`{state.folder / layout.BACKBONE}`: then they are no longer compared.)"
    )


def check_same(learned: Sequence[Learned], stream: TaskStream) -> None:
    """Raise `RunError` if a stream does not begin with these tasks, or their examples are others."""
    names = [task.name for task in learned]
    if stream.names[: len(names)] != names:
        raise RunError(
            f"The run has learned the tasks {names}, but the stream has {stream.names}. Keep their order, and put new "
            "ones behind them."
        )
    for old, task in zip(learned, stream, strict=False):
        if old.classes != task.classes or not task.has_digests(old.digests):
            raise RunError(f"{changed(task.name)} Put the old data back, or start a new run.")


def check_fits(backbone: Backbone, task: Learned) -> None:
    """Check that a task was learned on such a backbone.

    Raises
    ------
    RunError
        A head is of another width.
    BackboneError
        An adapter is for other layers.
    """
    adapters.check_fits(backbone.model, task.adapter)
    for name, head in task.heads.items():
        if SEED not in head and head["weight"].shape[1] != backbone.width:
            raise RunError(
                f"The head of `{name}` in task `{task.name}` reads {head['weight'].shape[1]} features, but "
                f"`{backbone.source}` gives {backbone.width}. Is it the model that the run began with?"
            )


def _check_texts(plan: Plan, learned: int, splits: Sequence[Split]) -> None:
    """Tokenize the texts of the tasks to come, so that one that cannot be read is named before anything is trained.

    It costs nothing: the tokens are kept for the training.

    Raises
    ------
    DataError
        The tokenizer makes no token of a text.
    InputError
        The tokenizer reads no pairs, and a task has them.
    """
    if plan.backbone.kind != "text":
        return
    for task in plan.stream.tasks[learned:]:
        for split in splits:
            plan.backbone.encode(task.rows(split))
