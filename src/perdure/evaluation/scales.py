"""Find the scale of a rule on validation data."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from perdure.data.task import TaskStream
from perdure.errors import NotFinite
from perdure.evaluation.score import TaskId
from perdure.evaluation.system import System
from perdure.merging import search
from perdure.merging.combine import Combined, task_vectors
from perdure.merging.scaled import Scaled
from perdure.merging.search import Scales
from perdure.vectors.task_vector import LowRank, TaskVector


def with_best_scale(system: System, stream: TaskStream) -> tuple[System, list[dict[str, Any]]]:
    """Return the system with the scale that is best on its tasks' validation examples, and each candidate's score.

    A rule that searches nothing is left as it is. Test data is never looked at. The validation
    examples of earlier tasks have to be kept for it; where that is not allowed, use a scale that
    needs no data (`1/n`).
    """
    rule = system.rule
    if not rule.searches or not system.learned:
        return system, []
    task_id: TaskId = "given" if stream.scenario == "task" else "posterior"

    def named(scales: Scales) -> Any:
        return search.named(scales, system.tasks, rule.search)

    with _scaled(system) as scaled:

        def score(scales: Scales) -> float:
            combined = scaled(named(scales))
            total = 0.0
            for name in system.tasks:
                try:
                    task = stream.task(name)
                    answers = system.answer(task, "validation", [task_id], combined=combined)
                except NotFinite:  # a scale so large answers nothing right
                    return 0.0
                total += answers.accuracy()[task_id]
            return total / len(system.tasks)

        start = search.start_of(len(system.tasks), rule.search)
        tried = search.candidates(score, start, rule.search)
    scores = [{"scale": named(scales), "score": value} for scales, value in tried.items()]
    return system.with_rule(rule.with_scale(named(search.best(tried)))), scores


@contextlib.contextmanager
def _scaled(system: System) -> Iterator[Callable[[Any], Combined]]:
    """Yield a function from a scale to the combination with it; low-rank task vectors are moved in the model itself."""
    rule = system.rule
    vectors = {}
    if rule.name == "task_arithmetic" and rule.space == "delta":
        vectors = task_vectors([task.adapter for task in system.learned], since=rule.since)
    values = [value for vector in vectors.values() for _, value in vector.items()]
    if not vectors or not all(isinstance(value, LowRank) for value in values):
        yield lambda scale: system.with_rule(rule.with_scale(scale)).combined
        return
    with Scaled.on(system.backbone.model, list(vectors.values())) as folded:

        def moved(scale: Any) -> Combined:
            each = list(scale.values()) if isinstance(scale, dict) else [scale] * len(vectors)
            folded.move([value if isinstance(value, list) else [value] for value in each])
            return Combined(TaskVector({}))  # the weights hold it already

        yield moved
