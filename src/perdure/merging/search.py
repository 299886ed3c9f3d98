"""Search for the scales of task vectors: numbers in, a score out, every candidate kept."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
from annotated_types import Ge, Gt

from perdure.merging.tpe import TPE, needed

Scales = tuple[float, ...]
GRID = (0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.5, 0.6, 0.8, 1.0, 1.5, 2.0)
FINEST = 1 / 8
"""Of the first step: below that, differences are those of single validation examples."""


@dataclass(frozen=True, kw_only=True)
class Search:
    """What is searched for, and how.

    Parameters
    ----------
    over
        One scale for `all` tasks; one for each of the `tasks`; or one for each task and part of the `layers`.
    by
        `coordinate`: move one scale at a time by a step that is halved when no move is better; `tpe` (of Optuna) or
        `cma-es` (pip install 'perdure[search]'). One scale for all is looked up on a grid.
    grid
        What is tried of one scale for all, besides 1/n.
    groups
        In how many parts of equal depth the layers are divided.
    budget
        How many candidates are scored at most.
    highest
        Scales are between 0 and this.
    seed
        Of `tpe` and `cma-es`.
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
    """Score scales, from `start` on, as the settings say; return all that were tried, in this order.

    Examples
    --------
    >>> tried = candidates(lambda s: -abs(s[0] - 0.75) - abs(s[1] - 0.25), (0.5, 0.5), Search(over="tasks"))
    >>> best(tried)
    (0.75, 0.25)
    """
    tried: dict[Scales, float] = {}

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
    """The candidate with the highest score. Of equally good ones: of one scale the smallest, which is nearest to the
    pre-trained model; of several the first that was tried, which is nearest to 1/n for all.
    """
    return max(tried, key=lambda scales: (tried[scales], -scales[0] if len(scales) == 1 else 0.0))


def _coordinate(
    tell: Callable[[Scales], float], start: Scales, settings: Search, tried: dict[Scales, float]
) -> None:
    """Pattern search: each scale in turn up or down by the step, kept when the score is higher."""
    now, step = start, max(start)
    tell(start)
    finest = FINEST * step
    while step >= finest:
        before = now
        for i in range(len(now)):
            for move in (step, -step):
                if len(tried) >= settings.budget:
                    return
                moved = (*now[:i], min(max(now[i] + move, 0.0), settings.highest), *now[i + 1 :])
                if tell(moved) > tell(now):
                    now = moved
                    break
        if now == before:
            step /= 2


def _tpe(tell: Callable[[Scales], float], start: Scales, settings: Search) -> None:
    names = [str(i) for i in range(len(start))]
    ranges = dict.fromkeys(names, (0.0, settings.highest))
    searcher = TPE(ranges, settings.seed, optuna=_package("optuna", settings))
    searcher.add(dict(zip(names, start, strict=True)), tell(start))
    for _ in range(settings.budget - 1):
        scales = tuple(searcher.ask().values())
        searcher.tell(tell(scales))


def _cma_es(tell: Callable[[Scales], float], start: Scales, settings: Search) -> None:
    cmaes = _package("cmaes", settings)
    bounds = np.array([[0.0, settings.highest]] * len(start))
    usual = 4 + int(3 * math.log(len(start)))
    size = max(2, min(usual, settings.budget - 1))
    sigma = max(start) / 2
    strategy = cmaes.CMA(
        mean=np.array(start), sigma=sigma, bounds=bounds, seed=settings.seed, population_size=size
    )
    tell(start)
    for _ in range((settings.budget - 1) // size):
        asked = [strategy.ask() for _ in range(size)]
        strategy.tell([(scales, -tell(tuple(scales.tolist()))) for scales in asked])


def _package(name: str, settings: Search) -> Any:
    return needed(name, f"`search.by: {settings.by}`", ", or search by `coordinate`")


def named(
    scales: Scales, tasks: Sequence[str], settings: Search
) -> float | dict[str, float] | dict[str, list[float]]:
    """Scales as `task_arithmetic` takes them: a number, one by task, or one by task and part of the layers.

    Examples
    --------
    >>> named((0.1, 0.2, 0.3, 0.4), ["a", "b"], Search(over="layers", groups=2))
    {'a': [0.1, 0.2], 'b': [0.3, 0.4]}
    """
    if settings.over == "all":
        return scales[0]
    if settings.over == "tasks":
        return dict(zip(tasks, scales, strict=True))
    parts = [list(scales[i : i + settings.groups]) for i in range(0, len(scales), settings.groups)]
    return dict(zip(tasks, parts, strict=True))


def start_of(tasks: int, settings: Search) -> Scales:
    """1/n for each task, or for each of its parts (or the highest that is allowed)."""
    each = {"all": 1, "tasks": tasks, "layers": tasks * settings.groups}[settings.over]
    return (min(1 / tasks, settings.highest),) * each
