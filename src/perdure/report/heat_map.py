"""The accuracy matrix R as a heat map."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
from matplotlib.figure import Figure
from numpy import ndarray

from perdure.report.markdown import percent
from perdure.report.svg import short, svg

MAP = matplotlib.colormaps["viridis"]
Result = Mapping[str, Any]


@svg
def matrix(result: Result, limits: tuple[float, float]) -> Figure:
    """One matrix: after learning the row's task, the score on the column's. Empty rows are left out."""
    n = len(result["tasks"])
    cell = 0.44 if n <= 8 else 0.34  # inches
    figure = Figure(figsize=(n * cell, len(_measured(result)) * cell))
    draw(figure.add_axes((0, 0, 1, 1)), result, limits, digits=1 if n <= 8 else 0)
    return figure


@svg
def readme_figure(
    summary: Mapping[str, Any], task_ids: Sequence[str] = (), titles: Sequence[str] = ()
) -> Figure | None:
    """The matrices of up to three runs side by side, under each run's own rule, in common colours.

    Parameters
    ----------
    task_ids
        For each run how the task is known; by default the first measured of posterior, concatenated, given.
    titles
        For each run what stands above; by default its title.
    """
    runs = summary["runs"][:3]
    found = [(i, result) for i, run in enumerate(runs) if (result := _pick(run, task_ids[i : i + 1]))]
    if not found:
        return None
    results = [result for _, result in found]
    few, same = len(found) < 3, len({tuple(result["tasks"]) for result in results}) == 1
    size, gap = 3.3 if few else 2.2, 0.5 if same else 1.5  # inches
    figure = Figure(figsize=(1, 1))  # it grows around what is in it
    for place, (i, result) in enumerate(found):
        height = size * len(_measured(result)) / len(result["tasks"])
        axes = figure.add_axes((place * (size + gap), 0, size, height))
        mesh = draw(axes, result, limits(results), size=11 if few else 8.5)
        axes.set_yticks(axes.get_yticks(), [f"after {label.get_text()}" for label in axes.get_yticklabels()])
        axes.tick_params(labelsize=10, labelleft=place == 0 or not same)
        title = titles[i] if i < len(titles) else runs[i]["title"]
        axes.set_title(short(title, 34 if few else 22), size=13, weight="bold", pad=12)
        mean = percent(result["metrics"]["average_accuracy"])
        axes.set_xlabel(f"{result['known']}\naverage accuracy {mean} %", fontsize=10.5, labelpad=8)
    bar = figure.colorbar(mesh, cax=figure.add_axes((len(found) * (size + gap) - gap + 0.3, 0, 0.13, size)))
    bar.ax.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.0f} %")
    bar.ax.tick_params(length=0)
    bar.solids.set(rasterized=False, edgecolor="face")  # pyright: ignore
    bar.outline.set_visible(False)  # pyright: ignore
    return figure


def _pick(run: Mapping[str, Any], wanted: Sequence[str]) -> Result | None:
    own = [result for result in run["results"] if result["rule"] == run["rule"]] or run["results"]
    order = [*wanted] or ["posterior", "concatenated", "given"]
    return next((result for task_id in order for result in own if result["task_id"] == task_id), None)


def limits(results: Iterable[Result]) -> tuple[float, float]:
    """Where the colours of several matrices begin and end: the tenths around their values."""
    values = [value for result in results for row in result["matrix"] for value in row if value is not None]
    low, high = (np.floor(10 * min(values)) / 10, np.ceil(10 * max(values)) / 10) if values else (0.0, 1.0)
    return float(low), float(max(high, low + 0.1))


def draw(axes: Axes, result: Result, limits: tuple[float, float], *, digits: int = 1, size: float = 8.5) -> QuadMesh:
    """Draw a matrix on axes; its numbers with so many `digits` after the point and of this font `size`."""
    measured, names = _measured(result), [short(name) for name in result["tasks"]]
    R: Float[ndarray, "steps tasks"] = np.array(result["matrix"], dtype=float)[measured]
    edges = [np.arange(length + 1) - 0.5 for length in reversed(R.shape)]
    mesh = axes.pcolormesh(*edges, R, cmap=MAP, vmin=limits[0], vmax=limits[1], edgecolors="white", lw=1.5)
    for (i, j), value in np.ndenumerate(R):
        if np.isfinite(value):
            black_or_white = ink(*mesh.to_rgba(value)[:3])
            axes.text(j, i, f"{100 * value:.{digits}f}", ha="center", va="center", color=black_or_white, fontsize=size)
    axes.set_xticks(range(len(names)), names, rotation=40, ha="left", rotation_mode="anchor")
    axes.set_yticks(range(len(measured)), [names[i] for i in measured])
    axes.set(aspect="equal", ylim=(len(measured) - 0.5, -0.5))
    axes.tick_params(length=0, labelbottom=False, labeltop=True)
    axes.spines[:].set_visible(False)
    return mesh


def _measured(result: Result) -> list[int]:
    return [i for i, row in enumerate(result["matrix"]) if any(value is not None for value in row)] or [0]


def ink(*colour: float) -> str:
    """Black or white, whichever has the higher contrast on a colour (WCAG 2)."""
    red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in colour)
    luminance = 0.2126 * red + 0.7152 * green + 0.0722 * blue
    return "black" if (luminance + 0.05) ** 2 > 1.05 * 0.05 else "white"
