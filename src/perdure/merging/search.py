"""A search for the scales of task vectors that give the highest validation score."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Annotated, Literal

import numpy as np
from annotated_types import Ge, Gt

from perdure.merging.tpe import TPE, needed

Scales = tuple[float, ...]
GRID = (0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.5, 0.6, 0.8, 1.0, 1.5, 2.0)
# The smallest step of the coordinate search, as a fraction of the first step. Smaller
# steps would change the prediction for only a few validation examples.
FINEST = 1 / 8


@dataclass(frozen=True, kw_only=True)
class Search:
    """Settings for the search for scales.

    Parameters
    ----------
    over
        The scales to vary: a single one for `all` tasks, one per task (`tasks`), or one
        per task and group of layers (`layers`).
    by
        `coordinate`: change one scale at a time, by a step that is halved when no change
        helps; `tpe` (from Optuna) or `cma-es` (pip install 'perdure[search]'). A single
        scale for all tasks is always searched on the grid.
    grid
        The values to try for a single scale, in addition to 1/n.
    groups
        The number of groups into which layers are divided by depth.
    budget
        The largest number of candidates to score, except on the grid.
    highest
        The upper bound for all scales, except on the grid. The lower bound is 0.
    seed
        The random seed for `tpe` and `cma-es`.
    """

    over: Literal["all", "tasks", "layers"] = "all"
    by: Literal["coordinate", "tpe", "cma-es"] = "coordinate"
    grid: tuple[float, ...] = GRID
    groups: Annotated[int, Ge(2)] = 3
    budget: Annotated[int, Ge(1)] = 60
    highest: Annotated[float, Gt(0)] = 2.0
    seed: int = 0


def candidates(
    score: Callable[[Scales], float], start: Scales, settings: Search
) -> dict[Scales, float]:
    """Search for scales with a high score and return the score of each candidate.

    The search begins at `start`. Candidates are in the order in which they were tried.

    Examples
    --------
    >>> def score(scales):
    ...     return -abs(scales[0] - 0.75) - abs(scales[1] - 0.25)
    >>> tried = candidates(score, (0.5, 0.5), Search(over="tasks"))
    >>> best(tried)
    (0.75, 0.25)
    """
    tried: dict[Scales, float] = {}

    # Scoring is expensive, because it evaluates a model on validation data, so no
    # candidate is scored twice.
    def tell(scales: Scales) -> float:
        if scales not in tried:
            tried[scales] = score(scales)
        return tried[scales]

    if settings.over == "all":
        for scale in sorted({*settings.grid, *start}):
            tell((scale,))
    elif settings.by == "coordinate":
        _coordinate(tell, start, settings, tried)
    elif settings.by == "tpe":
        _tpe(tell, start, settings)
    else:
        _cma_es(tell, start, settings)
    return tried


def best(tried: dict[Scales, float]) -> Scales:
    """Return the candidate with the highest score.

    With a single scale for all tasks, ties are broken in favour of the smallest scale,
    which changes the pre-trained model least. Otherwise, they are broken in favour of the
    candidate that was tried first, which tends to be closest to the start, 1/n for each
    task.
    """

    def preference(scales: Scales) -> tuple[float, float]:
        tie_break = 0.0
        if len(scales) == 1:
            tie_break = -scales[0]
        return tried[scales], tie_break

    return max(tried, key=preference)


def _coordinate(
    tell: Callable[[Scales], float],
    start: Scales,
    settings: Search,
    tried: dict[Scales, float],
) -> None:
    """Move one scale at a time up or down by a step and keep the moves that raise the score."""
    now = start
    step = max(start)
    finest = FINEST * step
    tell(start)
    while step >= finest:
        before = now
        for i in range(len(now)):
            for move in (step, -step):
                # The budget counts candidates, not moves, so repeated candidates are free.
                if len(tried) >= settings.budget:
                    return
                scale = max(now[i] + move, 0.0)
                scale = min(scale, settings.highest)
                moved = (*now[:i], scale, *now[i + 1 :])
                if tell(moved) > tell(now):
                    now = moved
                    break
        # Halve the step only after a full round without progress.
        if now == before:
            step /= 2


def _tpe(tell: Callable[[Scales], float], start: Scales, settings: Search) -> None:
    # Import Optuna before computing the first score, which may take minutes.
    optuna = _package("optuna", settings)
    first = {str(i): scale for i, scale in enumerate(start)}
    ranges = dict.fromkeys(first, (0.0, settings.highest))
    searcher = TPE(ranges, settings.seed, optuna=optuna)
    searcher.add(first, tell(start))
    # The start counts towards the budget.
    for _ in range(settings.budget - 1):
        candidate = searcher.ask()
        scales = tuple(candidate.values())
        score = tell(scales)
        searcher.tell(score)


def _cma_es(tell: Callable[[Scales], float], start: Scales, settings: Search) -> None:
    cmaes = _package("cmaes", settings)
    bounds = np.array([[0.0, settings.highest]] * len(start))
    # CMA-ES's default population is 4 + 3 ln(number of scales). It learns only from
    # complete generations, so at least one must fit into the budget left after the start.
    size = 4 + int(3 * math.log(len(start)))
    size = min(size, settings.budget - 1)
    size = max(size, 2)
    strategy = cmaes.CMA(
        mean=np.array(start),
        sigma=max(start) / 2,
        bounds=bounds,
        seed=settings.seed,
        population_size=size,
    )
    tell(start)
    for _ in range((settings.budget - 1) // size):
        generation = [strategy.ask() for _ in range(size)]
        losses: list[tuple[np.ndarray, float]] = []
        for scales in generation:
            score = tell(tuple(scales.tolist()))
            losses.append((scales, -score))  # cmaes minimises
        strategy.tell(losses)


def _package(name: str, settings: Search) -> ModuleType:
    return needed(name, f"`search.by: {settings.by}`", ", or search by `coordinate`")


def named(
    scales: Scales, tasks: Sequence[str], settings: Search
) -> float | dict[str, float] | dict[str, list[float]]:
    """Convert scales to the `scale` setting of `task_arithmetic`.

    The result is a single number, or a mapping of tasks to numbers or lists of numbers.

    Examples
    --------
    >>> named((0.1, 0.2, 0.3, 0.4), ["a", "b"], Search(over="layers", groups=2))
    {'a': [0.1, 0.2], 'b': [0.3, 0.4]}
    """
    if settings.over == "all":
        return scales[0]
    if settings.over == "tasks":
        return dict(zip(tasks, scales, strict=True))
    by_task: dict[str, list[float]] = {}
    for i, task in enumerate(tasks):
        # A task's scales are contiguous, from its first group of layers to its last.
        first = i * settings.groups
        by_task[task] = list(scales[first : first + settings.groups])
    return by_task


def start_of(tasks: int, settings: Search) -> Scales:
    """Return the first candidate, in which every scale is 1/n, or `highest` if that is lower."""
    counts = {
        "all": 1,
        "tasks": tasks,
        "layers": tasks * settings.groups,
    }
    count = counts[settings.over]
    scale = min(1 / tasks, settings.highest)
    return (scale,) * count
