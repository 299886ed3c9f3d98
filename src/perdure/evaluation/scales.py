"""The search for a rule's scale on validation data."""

import contextlib
from collections.abc import Callable, Iterator
from typing import TypedDict

from perdure.data.task import TaskStream
from perdure.errors import NotFinite
from perdure.evaluation.score import TaskId
from perdure.evaluation.system import System
from perdure.merging import search
from perdure.merging.combine import Combined, task_vectors
from perdure.merging.scaled import Scaled
from perdure.merging.search import Scales
from perdure.models import quantised
from perdure.vectors.task_vector import LowRank, TaskVector

Scale = float | dict[str, float] | dict[str, list[float]]
"""A single number, a number for each task, or a list of numbers for each task.

A list has one number for each group of layers; layers are grouped by depth.
"""


class Candidate(TypedDict):
    """A scale that a search has tried, and its average validation score, in JSON format."""

    scale: Scale
    score: float


def with_best_scale(system: System, stream: TaskStream) -> tuple[System, list[Candidate]]:
    """Return the system with the best scale on validation examples, and all candidates.

    If the rule does not search, the system is returned unchanged. Test data is never
    used. The search needs the validation examples of earlier tasks. If these must not be
    stored, use a scale that needs no data (`1/n`).
    """
    rule = system.rule
    if not rule.searches or not system.learned:
        return system, []
    # The task is inferred, which is harder, unless the stream promises to name it.
    task_id: TaskId = "given" if stream.scenario == "task" else "posterior"

    def named(scales: Scales) -> Scale:
        return search.named(scales, system.tasks, rule.search)

    def accuracy(combined: Combined) -> float:
        total = 0.0
        for name in system.tasks:
            answers = system.answer(
                stream.task(name),
                "validation",
                [task_id],
                combined=combined,
            )
            total += answers.scores()[task_id]
        # Each task has the same weight, regardless of its number of examples.
        return total / len(system.tasks)

    with _scaled(system) as scaled:

        def score(scales: Scales) -> float:
            combined = scaled(named(scales))
            try:
                return accuracy(combined)
            except NotFinite:
                # The scale is too large for finite answers, which is a bad score, not an error.
                return 0.0

        # Inside the block, because each candidate changes the weights of the model.
        start = search.start_of(len(system.tasks), rule.search)
        tried = search.candidates(score, start, rule.search)
    best = named(search.best(tried))
    candidates: list[Candidate] = []
    for scales, value in tried.items():
        candidates.append({"scale": named(scales), "score": value})
    return system.with_rule(rule.with_scale(best)), candidates


@contextlib.contextmanager
def _scaled(system: System) -> Iterator[Callable[[Scale], Combined]]:
    """Yield a function that returns the combined model for a scale.

    Low-rank task vectors of `task_arithmetic` are added to the weights of the model, so
    that each candidate costs only the difference from the previous one, not a complete
    combination.
    """
    vectors = _low_rank_vectors(system)
    if not vectors:
        rule = system.rule
        yield lambda scale: system.with_rule(rule.with_scale(scale)).combined
        return
    with Scaled.on(system.backbone.model, vectors) as folded:

        def moved(scale: Scale) -> Combined:
            folded.move(_per_task(scale, len(vectors)))
            # The weights already include the sum, so there is nothing left to add.
            return Combined(TaskVector({}), in_weights=True)

        yield moved


def _low_rank_vectors(system: System) -> list[TaskVector]:
    """Return the task vectors whose scales can be changed directly in the weights of the model.

    The list is empty if that is not possible for all of them.
    """
    rule = system.rule
    if quantised.is_quantised(system.backbone.model):
        return []
    if rule.name != "task_arithmetic" or rule.space != "delta":
        return []
    adapters = [task.adapter for task in system.learned]
    vectors = list(task_vectors(adapters, since=rule.since).values())
    for vector in vectors:
        if not all(isinstance(entry, LowRank) for _, entry in vector.items()):
            return []
    return vectors


def _per_task(scale: Scale, tasks: int) -> list[list[float]]:
    """Return a list of scales for each task, with one scale for each group of layers."""
    if not isinstance(scale, dict):
        return [[scale]] * tasks
    per_task: list[list[float]] = []
    for value in scale.values():
        per_task.append(value if isinstance(value, list) else [value])
    return per_task
