"""Dry runs: count what a run would do, without training or writing anything."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from perdure.data.task import Rows, Split, Task
from perdure.errors import InputError
from perdure.evaluation import general, open_set
from perdure.evaluation.measure import measurable
from perdure.learning.loop import give_head, set_dropout
from perdure.learning.method import method_name
from perdure.learning.progress import Course
from perdure.models import adapters, outline
from perdure.models.adapters import Adapter
from perdure.models.examples import Examples
from perdure.models.recomputing import recomputed
from perdure.runs.dry_run import DryRun, ModelSize, TaskSize
from perdure.runs.expected import ExpectedTask
from perdure.runs.job import Plan
from perdure.runs.next_task import trained_values
from perdure.runs.resume import check_alignment, check_data, check_same, compared, due_steps
from perdure.runs.state import RunState

NO_VALUES = (NotImplementedError, RuntimeError)
"""The errors that torch raises when a computation needs the values of a `meta` tensor."""

States = dict[tuple[torch.Size, ...], int | None]
"""The size of an optimizer's state in bytes (None if unknown), by the parameters' shapes."""


class CountedCourse(Course):
    """The training of a task whose examples are counted, but neither tokenized nor read."""

    def encoded(self, rows: Rows) -> Examples:
        tasks: list[str] = []
        for of_task in rows:
            tasks += [of_task.task] * len(of_task.data)
        count = len(tasks)
        return Examples([None] * count, tasks, [-1] * count, [0] * count, collate=_no_batch)


def _no_batch(inputs: list[object]) -> dict[str, torch.Tensor]:
    raise AssertionError(f"A dry run cannot make a batch of {len(inputs)} examples.")


def count(plan: Plan, state: RunState | None, name: str | None = None) -> DryRun:
    """Make the checks that a run makes before training, and count what it would do.

    Parameters
    ----------
    plan
        The plan of the run. Its backbone is an outline (see `perdure.models.outline`),
        and still has the last task's adapter afterwards.
    state
        The run to continue, if there is one.
    name
        The name of the recipe.

    Raises
    ------
    InputError
        The run would fail before training, or the method needs the model's weights before training.
    RunError
        The run in `state` cannot continue with this plan.
    """
    learned = 0
    if state:
        plan = compared(state, plan)
        check_same(state.learned, plan.stream)
        check_alignment(plan, state.learned)
        learned = len(state.learned)
    due = due_steps(state, plan)
    check_data(state, plan, due)
    # counted before an adapter is attached, which would count as well
    model = _model(plan)
    sizes = _tasks(plan, state)
    answers = _answers(plan, due)
    return DryRun(
        name=name or "",
        method=method_name(plan.method),
        rule=plan.rule.label,
        seed=plan.seed,
        model=model,
        learned=learned,
        tasks=tuple(sizes),
        epochs=plan.training.epochs,
        batch_size=plan.training.batch_size,
        accumulation=plan.training.gradient_accumulation,
        measured=len(due),
        scores=sum(len(measurable(plan.stream, step, plan.evaluation)) for step in due),
        answers=answers,
        task_ids=tuple(plan.evaluation.task_ids),
        at_most=any(isinstance(task, ExpectedTask) for task in plan.stream),
        notes=tuple(_notes(plan)),
    )


# -- the model


def _model(plan: Plan) -> ModelSize:
    backbone = plan.backbone
    files = backbone.files
    return ModelSize(
        source=backbone.source,
        architecture=type(backbone.model).__name__,
        parameters=sum(parameter.numel() for parameter in backbone.model.parameters()),
        dtype=str(backbone.settings.get("dtype", "float32")),
        bytes=outline.frozen_bytes(backbone),
        # a network that is trained from scratch needs no files
        has_weights=files is None or files.has_weights,
        is_tokenized=backbone.processor is not None,
    )


# -- the tasks


def _tasks(plan: Plan, state: RunState | None) -> list[TaskSize]:
    """Return the sizes of the tasks that are left. The method's `begin` is called for all tasks."""
    past = state.learned if state else ()
    earlier = [task.adapter for task in past]
    sizes: list[TaskSize] = []
    states: States = {}
    for number, task in enumerate(plan.stream, start=1):
        is_new = number > len(past)
        if number == len(past) + 1 and past:
            plan.method.state = dict(past[-1].state)
        _begin(plan, task, earlier if is_new else ())
        if is_new:
            seen = plan.stream.until(number)
            sizes.append(_size(plan, seen.tasks, states))
            plan.method.foresee(task)
    return sizes


def _begin(plan: Plan, task: Task, earlier: Sequence[Adapter]) -> None:
    """Prepare the backbone for a task: add a head and an adapter, as the training loop does."""
    backbone, method = plan.backbone, plan.method
    give_head(backbone, task, plan.training)
    # Earlier adapters do not change any size, so those that this run would train are left out.
    method.beneath(earlier)
    try:
        # The modules that the method adds to the model are created without values, too.
        with torch.device("meta"):
            method.begin(backbone, task)
    except NO_VALUES as error:
        why = " ".join(str(error).split())[:200]
        raise InputError(
            f"The method `{method_name(method)}` needs the model's weights before training, so a "
            f"dry run is not possible ({why}). Its `begin` could return early if "
            '`backbone.device.type == "meta"`.'
        ) from error
    if plan.training.gradient_checkpointing:
        # raises an error if the architecture does not support it
        with recomputed(backbone):
            set_dropout(backbone, plan.training)


def _size(plan: Plan, seen: Sequence[Task], states: States) -> TaskSize:
    """Return the sizes of the last of the tasks `seen`, whose adapter is attached to the backbone.

    The size of the optimizer's state is looked up in `states`, and added if it is missing.
    """
    task = seen[-1]
    backbone, training = plan.backbone, plan.training
    course = CountedCourse(backbone, seen, plan.method, training, seed=plan.seed)
    steps = len(course.plan(0))
    batches = sum(map(len, course.plan(0)))
    # An empty step takes a while, and the shapes are usually the same for all tasks.
    shapes = tuple(parameter.shape for parameter in course.parameters)
    if shapes not in states:
        states[shapes] = _state_bytes(course)
    tuners = adapters.tuner_layers(backbone.model)
    module = adapters.trainable(backbone.model).values()
    in_module = {id(parameter) for parameter in module}
    heads = [value for value in course.parameters if id(value) not in in_module]
    known = _steps_are_known(course, seen)
    return TaskSize(
        name=task.name,
        train=_examples(task, "train"),
        validation=_examples(task, "validation"),
        test=_examples(task, "test"),
        batches=batches if known else None,
        steps=steps * training.epochs if known else None,
        trained=trained_values(plan, replace(plan.stream, tasks=tuple(seen))),
        layers=len(tuners),
        kinds=tuple(dict.fromkeys(name.rpartition(".")[2] for name in tuners)),
        adapter_bytes=sum(parameter.nbytes for parameter in module),
        head_bytes=sum(parameter.nbytes for parameter in heads),
        gradient_bytes=sum(parameter.nbytes for parameter in course.parameters),
        optimizer_bytes=states[shapes],
        optimizer=type(course.optimizer).__name__,
    )


def _state_bytes(course: Course) -> int | None:
    """Return the size of the optimizer's state in bytes, or None if a step needs real values."""
    try:
        course.take_empty_step()
    except NO_VALUES:  # some custom optimizers read the parameters' values
        return None
    total = 0
    for of_parameter in course.optimizer.state.values():
        for value in of_parameter.values():
            if isinstance(value, torch.Tensor):
                total += value.nbytes
    return total


def _steps_are_known(course: Course, seen: Sequence[Task]) -> bool:
    """Return False if the number of training examples of any task in this training is unknown."""
    trained = course.rows.task_names() if course.rows else []
    return all(_examples(task, "train") is not None for task in seen if task.name in trained)


def _examples(task: Task, split: Split) -> int | None:
    """Return the number of examples of a split; None if unknown."""
    if isinstance(task, ExpectedTask):
        return task.sizes.get(split)
    return len(getattr(task, split))


# -- measurements


def _answers(plan: Plan, due: Sequence[int]) -> int | None:
    """Return the total number of test examples in all measurements, or None if unknown."""
    total = 0
    for step in due:
        for name in measurable(plan.stream, step, plan.evaluation):
            examples = _examples(plan.stream.task(name), "test")
            if examples is None:
                return None
            total += examples
    return total


# -- notes


def _notes(plan: Plan) -> list[str]:
    """Return sentences about unusual settings of a run, and about what is unknown."""
    backbone, training = plan.backbone, plan.training
    notes: list[str] = []
    if plan.rule.searches:
        notes.append("Before each measurement, the rule's scale is searched on validation data.")
    if general.source(plan.evaluation.general):
        notes.append("Each measurement also covers what `evaluation.general` asks for.")
    if open_set.source(plan.evaluation.unknown):
        notes.append("Each measurement also covers inputs that belong to no task.")
    if training.patience is not None:
        notes.append(f"With `patience: {training.patience}` training may stop after fewer steps.")
    if training.packing:
        notes.append(
            "With `packing` the number of steps stays the same: the examples of a step are packed "
            "into fewer rows."
        )
    if backbone.processor is None:
        notes.append(
            f"`{Path(backbone.source).name}` has no tokenizer on this machine, so the lengths of "
            "prompts and answers were not checked."
        )
    return [*notes, *_about_data(plan)]


def _about_data(plan: Plan) -> list[str]:
    reasons: dict[str, None] = {}
    guessed: list[str] = []
    unnumbered: list[str] = []
    for task in plan.stream:
        if not isinstance(task, ExpectedTask):
            continue
        reasons[task.reason] = None
        if not task.alone:
            unnumbered.append(f"`{task.name}`")
        if not plan.backbone.writes and not task.classes_are_known:
            guessed.append(f"`{task.name}`")
    if not reasons:
        return []
    first, *others = reasons
    more = f" ({len(others)} more are missing.)" if others else ""
    # Rounding, because benchmarks draw about as many examples, in proportion to the classes.
    notes = [
        f"{first}{more} The sizes are taken from the recipe, and the data may be smaller: all "
        "numbers of examples and steps are at most these, apart from rounding."
    ]
    if unnumbered:
        notes.append(f"{', '.join(unnumbered)} may be several tasks; their number is unknown.")
    if guessed:
        notes.append(f"The classes of {', '.join(guessed)} are unknown; two were assumed.")
    return notes
