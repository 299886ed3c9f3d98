"""Restore a run's tasks on a backbone, and find out where the run continues."""

import warnings
from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path

from perdure.data.task import Split, TaskStream, check_images
from perdure.errors import InputError, PerdureWarning, RunError
from perdure.evaluation import general
from perdure.evaluation.measure import measurable
from perdure.evaluation.metrics import GENERAL, is_score
from perdure.evaluation.system import Learned, System
from perdure.learning import engine
from perdure.learning.snapshot import Snapshot
from perdure.merging.rule_settings import Rule
from perdure.models import adapters, fitting
from perdure.models.backbone import Backbone
from perdure.models.heads import SEED
from perdure.runs import layout, task_folder, writer
from perdure.runs.changes import HARMLESS_IN_TRAINING, check_changes
from perdure.runs.expected import ExpectedTask
from perdure.runs.job import Plan, check, check_examples, settings_of
from perdure.runs.past import changed, not_measured
from perdure.runs.state import RunState, read
from perdure.storage import files


def opened(output: Path, plan: Plan, *, change: bool = False) -> Plan:
    """Make the folder of a run, or take the existing one if its settings are those of the plan.

    Parameters
    ----------
    change
        Allow the settings to differ: the run then gets those of the plan.

    Returns
    -------
    Plan
        The plan, with the recipe that the run has from now on.

    Raises
    ------
    InputError
        The name of a task is too long for the file system.
    RunError
        The folder holds a run with other settings, in something that affects what was learned.
    DataError
        `evaluation.general` names another text than the one that the run was measured on.
    """
    check(plan)
    task_folder.check_names(output, plan.stream.names)
    if plan.recipe is None:
        return plan
    writer.create(output, plan.recipe)
    return compared(read(output), plan, change=change)


def compared(state: RunState, plan: Plan, *, change: bool = False) -> Plan:
    """Check that a run can go on by a plan; return the plan with the recipe that it then has.

    See `opened`, of which this is the part that writes nothing.
    """
    recipe = dict(plan.recipe or {})
    if replace(state, recipe=recipe).made_in_python:
        _keep_forgotten(recipe, state, plan.stream)
    # A run that was refused, for a text that is too long perhaps, may be begun with other settings.
    if not change and not state.is_blank:
        check_changes(state.folder, state.recipe, recipe)
    _keep_digest(recipe, state)
    return replace(plan, recipe=recipe)


def _keep_forgotten(recipe: dict[str, object], state: RunState, stream: TaskStream) -> None:
    """Take the list of forgotten tasks over from a run.

    A recipe file has that list. The recipe for a stream made in Python is rebuilt at each call and
    lacks it. A task that is in the stream again is learned again.
    """
    gone = [name for name in layout.forgotten(state.recipe) if name not in stream.names]
    if gone:
        recipe["forgotten"] = gone
    if state.recipe.get("traces"):
        recipe["traces"] = state.recipe["traces"]


def _keep_digest(recipe: dict[str, object], state: RunState) -> None:
    """Take the digest of the text of `evaluation.general` over from a run that was measured on it.

    A file may have changed when nothing is to be measured. With its new digest the run would
    compare two texts later.

    Raises
    ------
    DataError
        The text that comes with a package is now another one.
    """
    evaluation = recipe.get("evaluation")
    if not isinstance(evaluation, dict):
        return
    before = _text_before(state)
    now = general.source(evaluation.get("general"))
    if before and now:
        general.check_name(before, now)
        setting = general.with_digest(evaluation["general"], before.digest)
        recipe["evaluation"] = evaluation | {"general": setting}


def resumed(state: RunState, plan: Plan) -> tuple[System, Snapshot | None, list[int]]:
    """Return what a run has learned, the saved state inside its next task, and the due steps.

    The backbone is as the run left it. Due are the steps that are still to be measured.

    Raises
    ------
    RunError
        The stream does not begin with the tasks that the run has learned.
    InputError
        Examples or heads that the rest of the run needs are missing.
    """
    system = restored(state, plan.backbone, plan.rule, plan.stream)
    learned = system.learned
    check_alignment(plan, learned)
    # the method object may have served another run before
    plan.method.state = dict(learned[-1].state) if learned else {}
    inside = _unfinished(state, plan)
    due = due_steps(state, plan)
    check_data(state, plan, due)
    if plan.stream.missing and due and engine.first():
        warnings.warn(not_measured(plan.stream.missing), PerdureWarning, stacklevel=3)
    return system, inside, due


def check_alignment(plan: Plan, learned: Sequence[Learned]) -> None:
    """Raise `InputError` if heads are to be aligned, and some tasks were learned without it."""
    # aligned heads are trained on the Gaussians of all tasks, which only the training itself keeps
    if plan.training.alignment and any(task.gaussians is None for task in learned):
        raise InputError(
            "`alignment` must be on from the first task on, "
            "but the run has learned tasks without it."
        )


def check_data(state: RunState | None, plan: Plan, due: Sequence[int]) -> None:
    """Check the examples of the tasks to come, and the text of `evaluation.general`.

    Everything that can fail for want of them fails here, before hours of training.

    Parameters
    ----------
    state
        The run so far; None if there is none.
    due
        The steps that will be measured.
    """
    learned = len(state.tasks) if state else 0
    check_examples(plan, learned, due)
    check_images(plan.stream.tasks[learned:])
    splits: list[Split] = ["train", "validation"]
    if due:
        splits.append("test")
    readable = plan.backbone.processor is not None  # the outline of a model may have no tokenizer
    if readable:
        _check_texts(plan, learned, splits)
    elsewhere = general.source(plan.evaluation.general)
    if elsewhere and due:
        before = _text_before(state) if state else None
        general.check_text(elsewhere, before.digest if before else "")
        if readable:
            general.pieces(plan.backbone, elsewhere)


def _text_before(state: RunState) -> general.Source | None:
    """Return the text that a run was measured on by `evaluation.general`; None if on none yet."""
    if not any(row["task"] == f"{GENERAL}text" for row in state.scores):
        return None
    evaluation = state.recipe.get("evaluation") or {}
    return general.source(evaluation.get("general"))


def restored(
    state: RunState, backbone: Backbone, rule: Rule, stream: TaskStream | None = None
) -> System:
    """Give the backbone the heads of a run's tasks and the last task's adapter, as they were left.

    Raises
    ------
    RunError
        The `stream` does not begin with the tasks that the run has learned, or their examples
        have changed; or the backbone is not the model that the run began with.
    """
    check_model(state, backbone)
    learned = state.learned
    for task in learned:
        check_fits(backbone, task)
    if stream:
        check_same(learned, stream)
    different_classes = {task.classes for task in learned}
    if state.shares_head and len(different_classes) > 1:
        raise RunError(
            f"`{state.folder / 'recipe.yaml'}` says that the tasks share a head, but they have "
            "different classes. It is damaged or was changed."
        )
    # another run may have used this backbone before, and left its adapter on the model
    adapters.detach(backbone.model)
    system = System(backbone, learned, rule, state.shares_head)
    system.give_heads()
    if learned:
        # training goes on from the last adapter; how all are combined is the rule's business
        adapters.attach(backbone.model, learned[-1].adapter.config)
        adapters.write(backbone.model, learned[-1].adapter.parameters)
    return system


# -- what is left to do


def due_steps(state: RunState | None, plan: Plan) -> list[int]:
    """Return the steps that are due to be measured; of all steps, if there is no run yet."""
    tasks = len(plan.stream)
    measured = _measured(state, plan) if state else set()
    steps = []
    if plan.evaluation.begins_before and 0 not in measured:
        steps.append(0)
    for step in range(1, tasks + 1):
        if plan.evaluation.due(step, tasks) and step not in measured:
            steps.append(step)
    return steps


def has_more(state: RunState, plan: Plan) -> bool:
    """Return whether a run has tasks to learn, or something to measure, until it fits the plan."""
    return state.tasks != plan.stream.names or bool(due_steps(state, plan))


def _measured(state: RunState, plan: Plan) -> set[int]:
    """Return the steps at which every task that is due then has a value for each `task_id`."""
    label = plan.rule.label
    measured: set[tuple[int, str, str]] = set()
    for row in state.scores:
        if row["rule"] == label:
            # Text is predicted in one way, which is the rule's business.
            way = row["task_id"] if is_score(row) else ""
            measured.add((row["step"], row["task"], way))
    steps: set[int] = set()
    for step in range(len(plan.stream) + 1):
        if _needed(plan, step) <= measured:
            steps.add(step)
    # If the rule was another one meanwhile, combined.json holds that one. The last step is measured
    # again, which writes how the tasks are combined by this rule.
    last = len(state.tasks)
    if last in steps and last:
        combined_by = state.combined["label"]
        if combined_by != label:
            steps.remove(last)
    return steps


def _needed(plan: Plan, step: int) -> set[tuple[int, str, str]]:
    """Return the step, task and `task_id` of each value that is due after a step."""
    names = measurable(plan.stream, step, plan.evaluation)
    needed: set[tuple[int, str, str]] = set()
    needed.update(product([step], names, plan.evaluation.task_ids))
    if plan.rule.routed:
        # Free text is written by one model: without a task a routed rule may have none to write it.
        for name in names:
            if not plan.stream.task(name).classes:
                needed.discard((step, name, "none"))
    if plan.evaluation.general:
        for name in ("text", *(task.name for task in plan.never)):
            needed.add((step, f"{GENERAL}{name}", ""))
    return needed


def _unfinished(state: RunState, plan: Plan) -> Snapshot | None:
    """Return the state inside the next task, if the same settings and examples made it."""
    snapshot = state.unfinished
    learned = len(state.tasks)
    if snapshot is None or learned == len(plan.stream):
        return None
    belongs_to = snapshot.about.get("belongs_to")
    if belongs_to == belonging(plan, plan.stream.until(learned + 1)):
        return snapshot
    # the process ended when it had saved the task, and before it had removed the state inside it
    if learned and belongs_to == belonging(plan, plan.stream.until(learned)):
        return None
    message = (
        "A task was being learned with other settings or examples when the run was stopped: "
        "it starts again from the beginning."
    )
    warnings.warn(message, PerdureWarning, stacklevel=3)
    return None


def belonging(plan: Plan, seen: TaskStream) -> dict[str, object]:
    """Return the values that must be unchanged for the training of the last task `seen` to resume
    inside it.

    The earlier tasks are included, because training started from what was learned of them.
    """
    settings = settings_of(plan)
    training = {}
    for key, value in settings["training"].items():
        # how often the state is saved, and who logs it, changes nothing that is learned
        if key not in HARMLESS_IN_TRAINING:
            training[key] = value
    values = {
        "tasks": {task.name: task.digests() for task in seen},
        "method": settings["method"],
        "backbone": settings["backbone"],
        "seed": plan.seed,
        "training": training,
    }
    # as JSON gives them back, for they are compared with what was read from a file
    return files.plain(values)


# -- checks


def check_model(state: RunState, backbone: Backbone) -> None:
    """Compare the backbone's files with those that the run began with, if it kept their hashes.

    Raises
    ------
    RunError
        The files differ, so the learned modules do not fit them.
    """
    recorded = layout.backbone(state.folder)
    if not recorded or not backbone.files or not state.stands_on_a_model:
        return
    present = backbone.hashes
    differing = []
    for name in sorted({*recorded, *present}):
        if recorded.get(name) != present.get(name):
            differing.append(name)
    if not differing:
        return
    names = ", ".join(f"`{name}`" for name in differing[:3])
    if len(differing) > 3:
        names += ", …"
    verb = "differs" if len(differing) == 1 else "differ"
    raise RunError(
        f"`{backbone.source}` is not the model that the run `{state.folder}` began with: {names} "
        f"{verb}. Put the original files back, or start a new run. (If you know that both models "
        f"answer alike, remove `{state.folder / layout.BACKBONE}`: "
        "then they are no longer compared.)"
    )


def check_same(learned: Sequence[Learned], stream: TaskStream) -> None:
    """Raise `RunError` unless a stream begins with these tasks, with the same examples."""
    names = [task.name for task in learned]
    if stream.names[: len(names)] != names:
        raise RunError(
            f"The run has learned the tasks {names}, but the stream has {stream.names}. "
            "Keep their order, and put new ones behind them."
        )
    for before, task in zip(learned, stream, strict=False):  # the stream may be longer
        if before.classes != task.classes or not task.has_digests(before.digests):
            raise RunError(f"{changed(task.name)} Put the old data back, or start a new run.")


def check_fits(backbone: Backbone, task: Learned) -> None:
    """Check that a task was learned on such a backbone.

    Raises
    ------
    RunError
        A head is of another width, or the task has none although the backbone answers by heads.
    BackboneError
        An adapter is for other layers.
    """
    fitting.check_fits(backbone.model, task.adapter)
    if bool(task.heads) != backbone.has_heads:
        learned = "by heads" if task.heads else "without a head"
        raise RunError(
            f"Task `{task.name}` is answered {learned}, but `{backbone.source}` answers "
            f"{'by heads' if backbone.has_heads else 'with text'}. "
            "Is it the model that the run began with?"
        )
    for name, head in task.heads.items():
        if SEED in head:  # it reads random features, whose number is the method's choice
            continue
        width = head["weight"].shape[1]
        if width != backbone.width:
            raise RunError(
                f"The head of `{name}` in task `{task.name}` reads {width} features, but "
                f"`{backbone.source}` gives {backbone.width}. "
                "Is it the model that the run began with?"
            )


def _check_texts(plan: Plan, learned: int, splits: Sequence[Split]) -> None:
    """Tokenize the texts of the tasks to come, so that an unreadable one fails before training.

    It costs nothing: the backbone keeps the tokens for the training.

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
        if isinstance(task, ExpectedTask):  # only counted: its texts are placeholders
            continue
        for split in splits:
            examples = plan.backbone.encode(task.rows(split))
            if split == "train" and examples.cut and engine.first():
                message = _about_cuts(task.name, examples.cut, len(examples), plan.backbone)
                warnings.warn(message, PerdureWarning, stacklevel=4)


def _about_cuts(task: str, cut: int, count: int, backbone: Backbone) -> str:
    """Return the warning that some prompts are cut in training."""
    settings = backbone.settings
    verb = "is" if cut == 1 else "are"
    return (
        f"Task `{task}`: {cut} of {count} prompts {verb} longer than `max_length: "
        f"{settings['max_length']}` tokens and cut (`truncate: {settings['truncate']}`). Raise "
        "`max_length`, or cut at another side."
    )
