"""The figures of diagnostics, each with the numbers that it was drawn from."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from perdure.report.diagnostics.parts import figures
from perdure.report.diagnostics.parts.numbers import array, none
from perdure.report.heat_map import heat
from perdure.report.picture import Cell, Picture

TASKS = 40  # drawn at most: a page of 300 × 300 cells is none
LAYERS = 60


def heat_map(
    caption: str,
    values: Float[ndarray, "rows columns"],
    rows: Sequence[str],
    columns: Sequence[str],
    *,
    limits: tuple[float, float],
    percent: bool = False,
) -> Picture:
    """A heat map, if anything in it is defined."""
    found = np.isfinite(values).any()
    colours = "RdBu_r" if limits[0] < 0 else "viridis"  # from blue over white to red around 0
    scale, digits = (100, 0) if percent else (1, 2)
    svg = heat(values, rows, columns, limits=limits, colours=colours, scale=scale, digits=digits)
    table = [[name, *row] for name, row in zip(rows, cells(values), strict=True)]
    return Picture(caption, svg if found else "", ["", *columns], table)


def square(
    caption: str,
    values: Any,
    tasks: Sequence[str],
    *,
    limits: tuple[float, float],
    percent: bool = False,
) -> Picture:
    """A heat map of the first tasks by themselves."""
    names = tasks[:TASKS]
    return heat_map(
        caption, array(values)[:TASKS, :TASKS], names, names, limits=limits, percent=percent
    )


def by_layer(
    caption: str,
    values: Float[ndarray, "layers columns"],
    layers: Sequence[str],
    columns: Sequence[str],
    *,
    limits: tuple[float, float],
    percent: bool = False,
) -> Picture:
    """A heat map whose rows are layers, of many some evenly over the depth."""
    kept, names = spread(len(layers), LAYERS), _ends(layers)
    rows, some = (
        [names[i] for i in kept],
        f" ({LAYERS} of {len(layers)} layers)" if len(layers) > LAYERS else "",
    )
    return heat_map(caption + some, values[kept], rows, columns, limits=limits, percent=percent)


def spread(count: int, most: int) -> list[int]:
    """At most so many of so many things, evenly spread, with the first and the last.

    Examples
    --------
    >>> spread(7, 3), spread(2, 3)
    ([0, 3, 6], [0, 1])
    """
    return sorted({round(i) for i in np.linspace(0, count - 1, min(count, most))})


def up_to(values: Float[ndarray, "..."]) -> tuple[float, float]:
    return 0.0, float(np.nanmax(values, initial=1e-12))


def series(
    svg: str, caption: str, names: Sequence[str], values: Mapping[str, figures.Values]
) -> Picture:
    """A figure of series over names, which are its table's columns and rows."""
    rows = [
        [name, *row]
        for name, row in zip(names, cells(np.stack(list(values.values())).T), strict=True)
    ]
    return Picture(caption, svg, ["", *values], rows)


def cells(values: Float[ndarray, "rows columns"]) -> list[list[Cell]]:
    return [[none(value) for value in row] for row in values]


def drawn(pictures: Sequence[Picture]) -> list[Picture]:
    """Those in which there is something."""
    return [picture for picture in pictures if picture.svg]


def _ends(names: Sequence[str]) -> list[str]:
    """The names of layers without the parts with which they all begin."""
    parts = [name.split(".") for name in names]
    same = 0
    while all(len(part) > same + 1 and part[same] == parts[0][same] for part in parts):
        same += 1
    return [".".join(part[same:]) for part in parts]
