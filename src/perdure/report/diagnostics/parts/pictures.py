"""The figures of diagnostics, each with its numbers as a table."""

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
"""The maximum number of tasks to draw, because nobody can read 300 × 300 cells."""
LAYERS = 60
"""The maximum number of layers to draw."""


def heat_map(
    caption: str,
    values: Float[ndarray, "rows columns"],
    rows: Sequence[str],
    columns: Sequence[str],
    *,
    limits: tuple[float, float],
    percent: bool = False,
) -> Picture:
    """Return a heat map with its table; there is no figure if every value is undefined."""
    svg = ""
    if np.isfinite(values).any():
        svg = heat(
            values,
            rows,
            columns,
            limits=limits,
            # From blue through white to red, if values can be negative.
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
    """Return a heat map of the values for all pairs of the first `TASKS` tasks."""
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
    """Return a heat map whose rows are layers.

    If there are too many layers, a selection evenly spread over the depth of the model is shown.
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
    """Return at most `most` evenly spaced integers from 0 to `count` - 1, including both.

    Examples
    --------
    >>> spread(7, 3), spread(2, 3)
    ([0, 3, 6], [0, 1])
    """
    numbers = np.linspace(0, count - 1, min(count, most))
    # A set, because two of them may round to the same integer.
    return sorted({round(number) for number in numbers})


def up_to(values: Float[ndarray, "..."]) -> tuple[float, float]:
    """Return the limits of a colour scale, from 0 to the greatest value."""
    # Above 0, so that a map of zeros also has a scale.
    return 0.0, float(np.nanmax(values, initial=1e-12))


def series(
    svg: str, caption: str, names: Sequence[str], values: Mapping[str, figures.Values]
) -> Picture:
    """Combine the figure of several series with a table that has a column for each of them."""
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
    """Convert an array to the rows of a table; nan becomes None."""
    rows = []
    for row in values:
        rows.append([none(value) for value in row])
    return rows


def drawn(pictures: Sequence[Picture]) -> list[Picture]:
    """Return only those pictures that have a figure."""
    return [picture for picture in pictures if picture.svg]


def _endings(names: Sequence[str]) -> list[str]:
    """Return the names of layers without the prefix that all of them share."""
    pieces = [name.split(".") for name in names]
    # The last component is kept, even if all names are the same.
    longest = min((len(name) - 1 for name in pieces), default=0)
    shared = 0
    while shared < longest and len({name[shared] for name in pieces}) == 1:
        shared += 1
    return [".".join(name[shared:]) for name in pieces]
