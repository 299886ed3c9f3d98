"""The figures of diagnostics, each with the numbers behind it."""

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float
from numpy import ndarray
from numpy.typing import ArrayLike

from perdure.report.diagnostics.parts import figures
from perdure.report.diagnostics.parts.numbers import array, none
from perdure.report.heat_map import heat
from perdure.report.picture import Cell, Picture

TASKS = 40
"""The largest number of tasks to draw: nobody can read 300 × 300 cells."""
LAYERS = 60
"""The most layers that are drawn."""


def heat_map(
    caption: str,
    values: Float[ndarray, "rows columns"],
    rows: Sequence[str],
    columns: Sequence[str],
    *,
    limits: tuple[float, float],
    percent: bool = False,
) -> Picture:
    """Make a heat map; without a figure if every value is undefined."""
    svg = ""
    if np.isfinite(values).any():
        svg = heat(
            values,
            rows,
            columns,
            limits=limits,
            # From blue over white to red, where values have a sign.
            colours="RdBu_r" if limits[0] < 0 else "viridis",
            scale=100 if percent else 1,
            digits=0 if percent else 2,
        )
    table = []
    for name, row in zip(rows, cells(values), strict=True):
        table.append([name, *row])
    return Picture(
        caption,
        svg,
        ["", *columns],
        table,
    )


def square(
    caption: str,
    values: ArrayLike,
    tasks: Sequence[str],
    *,
    limits: tuple[float, float],
    percent: bool = False,
) -> Picture:
    """Make a heat map of the first tasks against themselves."""
    names = tasks[:TASKS]
    return heat_map(
        caption,
        array(values)[:TASKS, :TASKS],
        names,
        names,
        limits=limits,
        percent=percent,
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
    """Make a heat map whose rows are layers; if there are too many, a selection evenly spread over
    the depth.
    """
    kept = spread(len(layers), LAYERS)
    names = _endings(layers)
    if len(layers) > LAYERS:
        caption += f" ({LAYERS} of {len(layers)} layers)"
    return heat_map(
        caption,
        values[kept],
        [names[layer] for layer in kept],
        columns,
        limits=limits,
        percent=percent,
    )


def spread(count: int, most: int) -> list[int]:
    """Return at most `most` numbers below `count`, evenly spread, with the first and the last.

    Examples
    --------
    >>> spread(7, 3), spread(2, 3)
    ([0, 3, 6], [0, 1])
    """
    numbers = np.linspace(0, count - 1, min(count, most))
    # A set, for two of them may round to the same.
    return sorted({round(number) for number in numbers})


def up_to(values: Float[ndarray, "..."]) -> tuple[float, float]:
    """Return limits of colours from 0 to the greatest value."""
    # Above 0, so that a map of zeros has a scale, too.
    return 0.0, float(np.nanmax(values, initial=1e-12))


def series(
    svg: str, caption: str, names: Sequence[str], values: Mapping[str, figures.Values]
) -> Picture:
    """Make a picture of series over names: they are the columns and rows of its table."""
    columns = np.stack(list(values.values()))
    rows = []
    for name, row in zip(names, cells(columns.T), strict=True):
        rows.append([name, *row])
    return Picture(
        caption,
        svg,
        ["", *values],
        rows,
    )


def cells(values: Float[ndarray, "rows columns"]) -> list[list[Cell]]:
    """Return an array as the rows of a table; nan becomes None."""
    rows = []
    for row in values:
        rows.append([none(value) for value in row])
    return rows


def drawn(pictures: Sequence[Picture]) -> list[Picture]:
    """Drop the pictures without a figure."""
    return [picture for picture in pictures if picture.svg]


def _endings(names: Sequence[str]) -> list[str]:
    """Return the names of layers without the beginning that all of them share."""
    pieces = [name.split(".") for name in names]
    # The last piece stays, even where all names are the same.
    longest = min((len(name) - 1 for name in pieces), default=0)
    shared = 0
    while shared < longest and len({name[shared] for name in pieces}) == 1:
        shared += 1
    return [".".join(name[shared:]) for name in pieces]
