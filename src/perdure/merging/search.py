"""The search for scales of task vectors: numbers in, a score out, all candidates kept."""

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
# The last step of the pattern search, as a share of the first. Below that, scores differ by
# single validation examples.
FINEST = 1 / 8


@dataclass(frozen=True, kw_only=True)
class Search:
    """The scales to search for, and how to search.

    Parameters
    ----------
    over
        One scale for `all` tasks; one for each of the `tasks`; or one for each task and group
        of `layers`.
    by
        `coordinate`: move one scale at a time by a step that is halved when no move is better;
        `tpe` (of Optuna) or `cma-es` (pip install 'perdure[search]'). One scale for all is looked
        up on a grid.
    grid
        The values that are tried for one scale for all, besides 1/n.
    groups
        The number of groups of equal depth into which the layers are divided.
    budget
        The largest number of candidates that are scored.
    highest
        The upper bound of all scales; the lower one is 0.
    seed
        Seed for `tpe` and `cma-es`.
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
    """Score candidates, beginning with `start`, and return their scores in the order of trial.

    Examples
    --------
    >>> def score(scales):
    ...     return -abs(scales[0] - 0.75) - abs(scales[1] - 0.25)
    >>> tried = candidates(score, (0.5, 0.5), Search(over="tasks"))
    >>> best(tried)
    (0.75, 0.25)
    """
    tried: dict[Scales, float] = {}

    # A score is expensive, because it measures a model on validation data: no candidate is
    # scored twice.
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

    Ties between single scales go to the smallest, which is closest to the pre-trained model. Other
    ties go to the candidate that was tried first, which is closest to 1/n for every task.
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
    """Move each scale in turn up or down by a step, and keep the moves that score higher."""
    now = start
    step = max(start)
    finest = FINEST * step
    tell(start)
    while step >= finest:
        before = now
        for i in range(len(now)):
            for move in (step, -step):
                # The budget counts candidates, not moves: those that were tried before are free.
                if len(tried) >= settings.budget:
                    return
                scale = max(now[i] + move, 0.0)
                scale = min(scale, settings.highest)
                moved = (*now[:i], scale, *now[i + 1 :])
                if tell(moved) > tell(now):
                    now = moved
                    break
        # Only a whole round without progress makes the step smaller.
        if now == before:
            step /= 2


def _tpe(tell: Callable[[Scales], float], start: Scales, settings: Search) -> None:
    # Optuna is looked for before the first score, which may take minutes.
    optuna = _package("optuna", settings)
    first = {str(i): scale for i, scale in enumerate(start)}
    ranges = dict.fromkeys(first, (0.0, settings.highest))
    searcher = TPE(ranges, settings.seed, optuna=optuna)
    searcher.add(first, tell(start))
    # The start is one of the candidates that the budget allows.
    for _ in range(settings.budget - 1):
        candidate = searcher.ask()
        scales = tuple(candidate.values())
        score = tell(scales)
        searcher.tell(score)


def _cma_es(tell: Callable[[Scales], float], start: Scales, settings: Search) -> None:
    cmaes = _package("cmaes", settings)
    bounds = np.array([[0.0, settings.highest]] * len(start))
    # The default population of CMA-ES is 4 + 3 ln(number of scales). It learns from whole
    # generations only, so one of them must fit into the budget that the start leaves.
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
    """Return scales as `task_arithmetic` takes them: a number, or numbers or lists by task.

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
        # The scales of a task are neighbours, from its first group of layers to its last.
        first = i * settings.groups
        by_task[task] = list(scales[first : first + settings.groups])
    return by_task


def start_of(tasks: int, settings: Search) -> Scales:
    """Return the first candidate: 1/n everywhere, or `highest` if that is lower."""
    counts = {
        "all": 1,
        "tasks": tasks,
        "layers": tasks * settings.groups,
    }
    count = counts[settings.over]
    scale = min(1 / tasks, settings.highest)
    return (scale,) * count
