"""Restore a run's tasks on a backbone, and find out where the run continues."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path

from perdure.data import images
from perdure.data.task import Split, TaskStream, check_images
from perdure.errors import DataError, InputError, PerdureWarning, RunError
from perdure.evaluation import general, open_set
from perdure.evaluation.measure import measurable
from perdure.evaluation.metrics import GENERAL, UNKNOWN, is_score
from perdure.evaluation.system import Learned, System
from perdure.learning import engine
from perdure.learning.snapshot import Snapshot
from perdure.merging.rule_settings import Rule
from perdure.models import adapters, fitting
from perdure.models.backbone import Backbone
from perdure.models.heads import SEED, THETA
from perdure.models.language import LanguageModel
from perdure.runs import layout, task_folder, writer
from perdure.runs.changes import check_changes, differences, is_harmless
from perdure.runs.expected import ExpectedTask
from perdure.runs.job import Plan, check, check_examples, settings_of
from perdure.runs.past import changed, not_measured
from perdure.runs.state import RunState, read
from perdure.storage import files


def opened(output: Path, plan: Plan, *, change: bool = False) -> Plan:
    """Create a run folder, or open an existing one whose settings match the plan.

    Parameters
    ----------
    change
        Allow the settings to differ; the run then adopts those of the plan.

    Returns
    -------
    Plan
        The plan, with the recipe that the run has from now on.

    Raises
    ------
    InputError
        The name of a task is too long for the file system.
    RunError
        The folder contains a run with other settings that affect what was learned.
    DataError
        `evaluation.general` names a different text from the one on which the run was measured.
    """
    check(plan)
    task_folder.check_names(output, plan.stream.names)
    if plan.recipe is None:
        return plan
    writer.create(output, plan.recipe)
    return compared(read(output), plan, change=change)


def compared(state: RunState, plan: Plan, *, change: bool = False) -> Plan:
    """Check that a run can continue with a plan, and return the plan with its new recipe.

    This is the part of `opened` that does not write anything.
    """
    recipe = dict(plan.recipe or {})
    if replace(state, recipe=recipe).made_in_python:
        _keep_forgotten(recipe, state, plan.stream)
    # A run that was rejected, perhaps because a text is too long, may start with other settings.
    if not change and not state.is_blank:
        check_changes(state.folder, state.recipe, recipe)
    _keep_digest(recipe, state)
    return replace(plan, recipe=recipe)


def _keep_forgotten(recipe: dict[str, object], state: RunState, stream: TaskStream) -> None:
    """Copy the list of forgotten tasks from a run into a recipe.

    A recipe file contains that list, but the recipe for a stream made in Python is
    rebuilt at each call and lacks it. A forgotten task that is in the stream again is
    learned again, so it is not copied.
    """
    gone = [name for name in layout.forgotten(state.recipe) if name not in stream.names]
    if gone:
        recipe["forgotten"] = gone
    if state.recipe.get("traces"):
        recipe["traces"] = state.recipe["traces"]


def _keep_digest(recipe: dict[str, object], state: RunState) -> None:
    """Copy the digest of the `evaluation.general` text from a run that was measured on it.

    The file may have changed since then. If the recipe recorded its new digest, later
    measurements would compare results on two different texts.

    Raises
    ------
    DataError
        The run was measured on a text that comes with a package, and the setting now names another.
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
    """Return what a run has learned, the checkpoint of its next task, and the steps to measure.

    The backbone is in the state in which the run left it. The checkpoint is None if there
    is none for the next task.

    Raises
    ------
    RunError
        The stream does not begin with the tasks that the run has learned.
    InputError
        Examples that the rest of the run needs are missing, or heads are to be aligned
        but were not aligned before.
    """
    system = restored(state, plan.backbone, plan.rule, plan.stream)
    learned = system.learned
    check_alignment(plan, learned)
    # the method object may have been used by another run before
    plan.method.state = dict(learned[-1].state) if learned else {}
    inside = _unfinished(state, plan)
    due = due_steps(state, plan)
    check_data(state, plan, due)
    if plan.stream.missing and due and engine.first():
        warnings.warn(not_measured(plan.stream.missing), PerdureWarning, stacklevel=3)
    return system, inside, due


def check_alignment(plan: Plan, learned: Sequence[Learned]) -> None:
    """Raise `InputError` if heads are to be aligned, but some tasks were learned without that."""
    # heads are aligned with the Gaussians of all tasks, which are stored only during training
    if plan.training.alignment and any(task.gaussians is None for task in learned):
        raise InputError(
            "`alignment` must be on from the first task, but the run has learned tasks without it."
        )


def check_data(state: RunState | None, plan: Plan, due: Sequence[int]) -> None:
    """Check the examples of the tasks to learn, and what else is measured.

    Everything that can fail for lack of examples fails here, before hours of training.

    Parameters
    ----------
    state
        The run so far; None if there is none.
    due
        The steps to measure.
    """
    learned = len(state.tasks) if state else 0
    check_examples(plan, learned, due)
    check_images(plan.stream.tasks[learned:])
    splits: list[Split] = ["train", "validation"]
    if due:
        splits.append("test")
    readable = plan.backbone.processor is not None  # an outline may have no tokenizer
    if readable:
        _check_texts(plan, learned, splits)
    elsewhere = general.source(plan.evaluation.general)
    if elsewhere and due:
        before = _text_before(state) if state else None
        general.check_text(elsewhere, before.digest if before else "")
        if readable:
            general.pieces(plan.backbone, elsewhere)
    if due and readable:
        _check_unknown(plan)


def _check_unknown(plan: Plan) -> None:
    """Check that the inputs of `evaluation.unknown` can be read.

    Raises
    ------
    DataError
        A text has no tokens, or an image cannot be read.
    """
    inputs = plan.stream.unknown
    if inputs is None or not open_set.source(plan.evaluation.unknown):
        return
    if plan.backbone.kind == "text":
        open_set.encoded(plan.backbone, plan.stream)
        return
    reasons = list(images.unreadable(inputs, "`evaluation.unknown`"))
    if reasons:
        raise DataError(
            f"{len(reasons)} images of `evaluation.unknown` cannot be read and must be replaced or "
            f"removed. {reasons[0]}"
        )


def _text_before(state: RunState) -> general.Source | None:
    """Return the text of `evaluation.general` on which a run was measured, or None."""
    if not any(row["task"] == f"{GENERAL}text" for row in state.scores):
        return None
    evaluation = state.recipe.get("evaluation") or {}
    return general.source(evaluation.get("general"))


def restored(
    state: RunState, backbone: Backbone, rule: Rule, stream: TaskStream | None = None
) -> System:
    """Restore a run on a backbone: the heads of its tasks and the last task's adapter.

    Raises
    ------
    RunError
        `stream` does not begin with the tasks that the run has learned, or their examples
        have changed; or the backbone is not the model with which the run began.
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
    system = System(backbone, learned, rule, state.shares_head, state.posterior)
    system.give_heads()
    if learned:
        # training continues from the last adapter; combining all adapters is up to the rule
        adapters.attach(backbone.model, learned[-1].adapter.config)
        adapters.write(backbone.model, learned[-1].adapter.parameters)
    return system


# -- what is left to do


def due_steps(state: RunState | None, plan: Plan) -> list[int]:
    """Return the steps that still have to be measured; all steps if there is no run yet."""
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
    """Return True if the plan still has tasks to learn or steps to measure in this run."""
    return state.tasks != plan.stream.names or bool(due_steps(state, plan))


def _measured(state: RunState, plan: Plan) -> set[int]:
    """Return the steps for which all values that the plan requires have been measured."""
    label = plan.rule.label
    measured: set[tuple[int, str, str]] = set()
    for row in state.scores:
        if row["rule"] == label:
            # Values that are not scores do not depend on the `task_id`.
            way = row["task_id"] if is_score(row) else ""
            measured.add((row["step"], row["task"], way))
    steps: set[int] = set()
    for step in range(len(plan.stream) + 1):
        if _needed(plan, step) <= measured:
            steps.add(step)
    # If another rule was used in the meantime, combined.json contains that rule.
    # Measuring the last step again writes this rule.
    last = len(state.tasks)
    if last in steps and last:
        combined_by = state.combined["label"]
        if combined_by != label:
            steps.remove(last)
    return steps


def _needed(plan: Plan, step: int) -> set[tuple[int, str, str]]:
    """Return the step, task and `task_id` of each value that is required at a step."""
    names = measurable(plan.stream, step, plan.evaluation)
    needed: set[tuple[int, str, str]] = set()
    needed.update(product([step], names, plan.evaluation.task_ids))
    if plan.rule.routed:
        # Free text is written by a single model, which a routed rule may lack without a task.
        for name in names:
            if not plan.stream.task(name).classes:
                needed.discard((step, name, "none"))
    if plan.evaluation.general:
        for name in ("text", *(task.name for task in plan.never)):
            needed.add((step, f"{GENERAL}{name}", ""))
    known = set(names) & set(plan.stream.names[:step])
    if known and plan.stream.unknown is not None and open_set.source(plan.evaluation.unknown):
        for name in open_set.SCORES:
            needed.add((step, f"{UNKNOWN}{name}", ""))
    return needed


def _unfinished(state: RunState, plan: Plan) -> Snapshot | None:
    """Return the checkpoint of the next task if it was made with the same settings and examples."""
    snapshot = state.unfinished
    learned = len(state.tasks)
    if snapshot is None or learned == len(plan.stream):
        return None
    belongs_to = snapshot.about.get("belongs_to")
    if _alike(belongs_to, belonging(plan, plan.stream.until(learned + 1))):
        return snapshot
    # the process died after saving the task, but before removing the task's checkpoint
    if learned and _alike(belongs_to, belonging(plan, plan.stream.until(learned))):
        return None
    message = (
        "A task was being learned with other settings or examples when the run was stopped: "
        "it starts again from the beginning."
    )
    warnings.warn(message, PerdureWarning, stacklevel=3)
    return None


def _alike(before: object, now: Mapping[str, object]) -> bool:
    """Return True if a checkpoint's settings and examples do not differ in what is learned.

    Harmless settings may differ, such as how often checkpoints are saved. An older version
    lacks new settings.
    """
    if not isinstance(before, Mapping):  # the file was changed
        return False
    return all(is_harmless(name, now) for name, _ in differences(before, now))


def belonging(plan: Plan, seen: TaskStream) -> dict[str, object]:
    """Return the values that are compared before training resumes in the middle of a task.

    `seen` ends with that task. The earlier tasks are included, because training started
    from what was learned from them.
    """
    settings = settings_of(plan)
    values = {
        "tasks": {task.name: task.digests() for task in seen},
        "method": settings["method"],
        "backbone": settings["backbone"],
        "seed": plan.seed,
        "training": settings["training"],
    }
    # as JSON returns them, because they are compared with values read from a file
    return files.plain(values)


# -- checks


def check_model(state: RunState, backbone: Backbone) -> None:
    """Compare the backbone's files with the hashes recorded when the run began, if there are any.

    Raises
    ------
    RunError
        A file differs, so the learned modules do not fit the model.
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
        f"give the same answers, remove `{state.folder / layout.BACKBONE}`: "
        "then they are no longer compared.)"
    )


def check_same(learned: Sequence[Learned], stream: TaskStream) -> None:
    """Raise `RunError` unless a stream begins with the learned tasks, with the same examples."""
    names = [task.name for task in learned]
    if stream.names[: len(names)] != names:
        raise RunError(
            f"The run has learned the tasks {names}, but the stream has {stream.names}. "
            "Keep their order, and put new ones after them."
        )
    for before, task in zip(learned, stream, strict=False):  # the stream may be longer
        if before.classes != task.classes or not task.has_digests(before.digests):
            raise RunError(f"{changed(task.name)} Put the old data back, or start a new run.")


def check_fits(backbone: Backbone, task: Learned) -> None:
    """Check that the adapter and the heads of a task fit a backbone.

    Raises
    ------
    RunError
        A head has another width; or the task has heads and the backbone does not answer
        by heads, or vice versa.
    BackboneError
        The adapter is for other layers.
    """
    fitting.check_fits(backbone.model, task.adapter)
    if bool(task.heads) != backbone.has_heads:
        learned = "by heads" if task.heads else "without a head"
        without = "with text" if backbone.writes else "without them"
        raise RunError(
            f"Task `{task.name}` is answered {learned}, but `{backbone.source}` answers "
            f"{'by heads' if backbone.has_heads else without}. "
            "Is it the model that the run began with?"
        )
    for name, head in task.heads.items():
        if THETA in head:
            width = head[THETA].shape[2]
        elif SEED in head:  # it reads random features, and the method chooses their number
            continue
        else:
            width = head["weight"].shape[1]
        if width != backbone.width:
            raise RunError(
                f"The head of `{name}` in task `{task.name}` reads {width} features, but "
                f"`{backbone.source}` produces {backbone.width}. "
                "Is it the model that the run began with?"
            )


def _check_texts(plan: Plan, learned: int, splits: Sequence[Split]) -> None:
    """Tokenize the texts of tasks not yet learned, so that bad ones fail before training.

    This takes no extra time, because the backbone stores the tokens for training.

    Raises
    ------
    DataError
        A text has no tokens, or two answers of a task are the same to a language model.
    InputError
        A task has pairs of texts, which the tokenizer cannot read.
    """
    if plan.backbone.kind != "text":
        return
    for task in plan.stream.tasks[learned:]:
        if isinstance(task, ExpectedTask):  # its texts are only placeholders
            continue
        for split in splits:
            examples = plan.backbone.encode(task.rows(split))
            if split == "train" and examples.cut and engine.first():
                message = _about_cuts(task.name, examples.cut, len(examples), plan.backbone)
                warnings.warn(message, PerdureWarning, stacklevel=4)
        if isinstance(plan.backbone, LanguageModel):
            plan.backbone.prompts.check_choices(task.classes, task.name)


def _about_cuts(task: str, cut: int, count: int, backbone: Backbone) -> str:
    """Return a warning that some prompts are cut in training."""
    settings = backbone.settings
    verb = "is" if cut == 1 else "are"
    return (
        f"Task `{task}`: {cut} of {count} prompts {verb} longer than `max_length: "
        f"{settings['max_length']}` tokens and will be cut (`truncate: {settings['truncate']}`). "
        "Raise `max_length`, or set another side to cut with `truncate`."
    )
