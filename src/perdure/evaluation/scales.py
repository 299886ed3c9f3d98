"""Find the scale of a rule on validation data."""

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
"""A number, one for each task, or a list for each task (by parts of equal depth)."""


class Candidate(TypedDict):
    """A scale that a search tried, and its average validation score, as JSON has it."""

    scale: Scale
    score: float


def with_best_scale(system: System, stream: TaskStream) -> tuple[System, list[Candidate]]:
    """Return the system with its best scale on validation examples, and all candidates.

    A rule without a search is left as it is. Test data is never used. The validation examples of
    earlier tasks have to be kept; if that is not allowed, use a scale that needs no data (`1/n`).
    """
    rule = system.rule
    if not rule.searches or not system.learned:
        return system, []
    # The harder way to know the task, unless the stream promises to name it.
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
        # Each task has the same weight, whatever the number of its examples.
        return total / len(system.tasks)

    with _scaled(system) as scaled:

        def score(scales: Scales) -> float:
            combined = scaled(named(scales))
            try:
                return accuracy(combined)
            except NotFinite:
                # The scale is too large to answer anything. That is a bad score, not an error.
                return 0.0

        # Inside the block: each candidate is scored with the model in its moved state.
        start = search.start_of(len(system.tasks), rule.search)
        tried = search.candidates(score, start, rule.search)
    best = named(search.best(tried))
    candidates: list[Candidate] = []
    for scales, value in tried.items():
        candidates.append({"scale": named(scales), "score": value})
    return system.with_rule(rule.with_scale(best)), candidates


@contextlib.contextmanager
def _scaled(system: System) -> Iterator[Callable[[Scale], Combined]]:
    """Yield a function from a scale to the combination with it.

    Low-rank task vectors of `task_arithmetic` are added to the model's own weights: each candidate
    then costs only the difference from the previous one, not a whole combination.
    """
    vectors = _low_rank_vectors(system)
    if not vectors:
        rule = system.rule
        yield lambda scale: system.with_rule(rule.with_scale(scale)).combined
        return
    with Scaled.on(system.backbone.model, vectors) as folded:

        def moved(scale: Scale) -> Combined:
            folded.move(_per_task(scale, len(vectors)))
            # The weights already hold the sum, so nothing is left to add.
            return Combined(TaskVector({}))

        yield moved


def _low_rank_vectors(system: System) -> list[TaskVector]:
    """Return the task vectors if their scales can be moved in the model's weights, otherwise an
    empty list.
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
    """Return the scales of each task: a list with one for each part of equal depth."""
    if not isinstance(scale, dict):
        return [[scale]] * tasks
    per_task: list[list[float]] = []
    for value in scale.values():
        per_task.append(value if isinstance(value, list) else [value])
    return per_task
