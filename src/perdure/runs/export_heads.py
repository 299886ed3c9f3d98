"""The heads of an exported model, and what it scores with them on the tests of the run."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from perdure.data import network
from perdure.data.task import Task, TaskStream
from perdure.errors import InputError, PerdureError
from perdure.evaluation.closed_form import check_closed_form, closed_form_heads
from perdure.evaluation.score import TaskId
from perdure.evaluation.system import System
from perdure.models.backbone import Backbone
from perdure.runs.job import make_method
from perdure.runs.layout import Settings
from perdure.runs.recipe import Recipe
from perdure.runs.resume import check_same
from perdure.runs.state import RunState
from perdure.settings import Section

Heads = Literal["closed_form", "joined"]
"""The heads of an exported encoder: computed in closed form, or those that were trained, joined."""
ComputedHeads = Mapping[str, Mapping[str, Tensor]]
"""The weights and biases of heads that replace those of a run, by task name."""


@dataclass(frozen=True)
class Measured:
    """The average accuracy over all tasks, of the run and of the exported model.

    Attributes
    ----------
    accuracy
        The accuracy by `task_id`: `posterior` is that of `perdure predict`, and `none` that
        of the exported model. Without those that were not measured.
    unmeasured
        A sentence that says why one of them could not be measured; none if both were.
    """

    accuracy: Mapping[str, float]
    unmeasured: tuple[str, ...] = ()


def usual_heads(system: System, recipe: Settings) -> Heads:
    """Return the kind of heads with which a system is exported if the user names none.

    They are in closed form wherever the heads of several tasks were trained apart.
    """
    # Such heads are comparable already.
    aligned = any(task.gaussians is not None for task in system.learned)
    if aligned or _computes_heads(recipe["method"]) or len(system.learned) == 1:
        return "joined"
    try:
        check_closed_form(system)
    except InputError:
        return "joined"
    return "closed_form"


def _computes_heads(method: Section) -> bool:
    """Return True if a method computes the heads of all tasks from its own statistics."""
    try:
        return make_method(method).computes_heads
    except PerdureError:
        # The code of a method may be missing, or not trusted. Exporting does not need it.
        return False


def computed_heads(system: System, heads: Heads) -> ComputedHeads:
    """Return the heads that replace those of the run in an export; none if these are joined.

    Raises
    ------
    InputError
        There are no heads in closed form for this system (`check_closed_form`).
    """
    return closed_form_heads(system) if heads == "closed_form" else {}


@contextlib.contextmanager
def replaced(backbone: Backbone, heads: ComputedHeads) -> Iterator[None]:
    """Replace heads of the backbone while the block runs."""
    with backbone.keeping():
        for task, head in heads.items():
            backbone.put(task, head)
        yield


def measured(
    system: System,
    state: RunState,
    label: str,
    heads: ComputedHeads,
    stream: TaskStream | None = None,
) -> Measured:
    """Return the accuracy of a run and of its export, measured unless the run has the scores.

    Nothing is downloaded. The backbone must have the heads of the run.

    Parameters
    ----------
    label
        The name of the rule in the scores of the run.
    heads
        The heads that the exported model has in place of those of the run.
    stream
        The tasks, if they cannot be created from the run's recipe.
    """
    scores = state.accuracies(label)
    if not system.backbone.has_heads or len(system.learned) == 1:
        # A language model is exported as it is, and so is the head of a single task.
        return Measured(scores)
    accuracy: dict[str, float] = {}
    if "posterior" in scores:
        accuracy["posterior"] = scores["posterior"]
    if not heads and "none" in scores:
        accuracy["none"] = scores["none"]
    if len(accuracy) == 2:
        return Measured(accuracy)
    try:
        tasks = _tested(system, state, stream)
    except PerdureError as error:
        # The export itself needs no examples, so it does not fail without them.
        return Measured(accuracy, (str(error),))
    if "posterior" not in accuracy:
        accuracy["posterior"] = _average(system, tasks, "posterior")
    if "none" not in accuracy:
        with replaced(system.backbone, heads):
            accuracy["none"] = _average(system, tasks, "none")
    return Measured(accuracy)


def _tested(system: System, state: RunState, stream: TaskStream | None) -> Sequence[Task]:
    """Return the learned tasks, with their test examples.

    Raises
    ------
    PerdureError
        The examples of a task are missing, or are not those that the run has learned.
    """
    if stream is None:
        with network.closed():
            stream = Recipe.parse(state.recipe).make_stream(state)
    check_same(system.learned, stream.until(len(system.learned)))
    tasks = stream.tasks[: len(system.learned)]
    for task in tasks:
        if task.missing:
            raise InputError(f"The examples of task `{task.name}` are missing. {task.missing}")
        if not len(task.test):
            raise InputError(f"Task `{task.name}` has no test examples.")
    return tasks


def _average(system: System, tasks: Sequence[Task], task_id: TaskId) -> float:
    """Return the average score over tasks with the heads that the backbone has now."""
    scores = [system.answer(task, "test", (task_id,)).scores()[task_id] for task in tasks]
    return sum(scores) / len(scores)
