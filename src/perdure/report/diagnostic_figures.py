"""The figures of diagnostics, as SVG text: heat maps of any table, lines, bars, and the reliability diagram."""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.colors import Normalize, to_rgba
from matplotlib.figure import Figure
from numpy import ndarray

from perdure.report.heat_map import ink
from perdure.report.svg import short, svg

COLOURS = ("#0072b2", "#d55e00", "#009e73")  # after Okabe and Ito 2008
WIDTH = 4.9  # inches
NUMBERS = 12  # up to so many rows and columns, a cell says its number
Values = Float[ndarray, " n"]


@svg
def heat(
    values: Float[ndarray, "rows columns"],
    rows: Sequence[str],
    columns: Sequence[str],
    *,
    limits: tuple[float, float],
    digits: int = 2,
    percent: bool = False,
) -> Figure:
    """A table as colours: from blue over white to red if `limits` lie around 0. In cells of small ones, the numbers."""
    around_zero = limits[0] < 0
    few = max(values.shape) <= NUMBERS
    cell = 0.4 if few else min(0.3, WIDTH / values.shape[1])  # inches
    figure = Figure(figsize=(values.shape[1] * cell, values.shape[0] * min(0.3, max(cell, 0.12))))
    axes = figure.add_axes((0, 0, 1, 1))
    edges = [np.arange(length + 1) - 0.5 for length in reversed(values.shape)]
    scale = Normalize(*limits)
    colours = matplotlib.colormaps["RdBu_r" if around_zero else "viridis"]
    mesh = axes.pcolormesh(*edges, values, cmap=colours, norm=scale, edgecolors="white", lw=1.5 if few else 0.2)
    for (i, j), value in np.ndenumerate(values):
        if few and np.isfinite(value):
            text = f"{100 * value if percent else value:.{digits}f}".replace("-", "−")
            axes.text(j, i, text, ha="center", va="center", color=ink(*mesh.to_rgba(value)[:3]), fontsize=7.5)
    size = 9 if few else max(4.0, min(8.0, 60 * cell))  # points
    turned: dict[str, Any] = {"rotation": 40, "ha": "left", "rotation_mode": "anchor"} if few else {"rotation": 90}
    axes.set_xticks(range(len(columns)), [short(name) for name in columns], fontsize=size, **turned)
    axes.set_yticks(range(len(rows)), [short(name, 40) for name in rows], fontsize=size)
    axes.set(ylim=(len(rows) - 0.5, -0.5))
    axes.tick_params(length=0, labelbottom=False, labeltop=True)
    axes.spines[:].set_visible(False)
    if not few:
        bar = figure.colorbar(mesh, cax=figure.add_axes((1.03, 0, 0.03, 1)))
        bar.solids.set(rasterized=False, edgecolor="face")  # pyright: ignore
        bar.outline.set_visible(False)  # pyright: ignore
        bar.ax.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.0f} %" if percent else f"{value:.3g}")
    return figure


@svg
def lines(series: Mapping[str, Values], names: Sequence[str], label: str, *, percent: bool = False) -> Figure:
    """A line for each series of shares, over named steps; a tenth of height at least, so that noise stays small."""
    figure, axes = _axes(names, label, percent)
    for i, (name, values) in enumerate(series.items()):
        axes.plot(values, "-o" if len(names) <= 40 else "-", color=COLOURS[i], ms=5, label=f" {name}")
    low, high = axes.get_ylim()
    high = min(high, 1.02)
    axes.set(xlabel="after learning", ylim=(min(low, high - 0.1), high))
    return _named(figure, len(series))


@svg
def bars(
    series: Mapping[str, Values], names: Sequence[str], label: str, *, percent: bool = False, stacked: bool = False
) -> Figure:
    """Bars for each name: one for each series, beside or on each other."""
    figure, axes = _axes(names, label, percent)
    width, bottom = 0.8 / (1 if stacked else len(series)), np.zeros(len(names))
    for i, (name, values) in enumerate(series.items()):
        x = np.arange(len(names)) + (0 if stacked else -0.4 + (i + 0.5) * width)
        axes.bar(x, values, 0.92 * width, bottom=bottom if stacked else None, color=COLOURS[i], label=f" {name}")
        bottom += np.nan_to_num(values)
    axes.axhline(0, color="#888888", lw=0.8)
    return _named(figure, len(series))


@svg
def reliability(bins: Float[ndarray, "bins 5"], label: str) -> Figure:
    """The share that is right over the confidence; the diagonal is perfect. Strong bars hold more of the examples."""
    figure = Figure(figsize=(3.2, 3.2), layout="constrained")
    axes = figure.subplots()
    low, high, count, _, accuracy = bins.T
    strength = 0.25 + 0.75 * np.nan_to_num(count) / max(1.0, np.nan_to_num(count).max(initial=0))
    colours = [to_rgba(COLOURS[0], alpha) for alpha in strength]
    axes.bar(low, np.nan_to_num(accuracy), high - low, align="edge", color=colours, edgecolor="white", lw=0.6)
    axes.plot([0, 1], [0, 1], "--", color="#555555", lw=1)
    axes.set(xlim=(0, 1), ylim=(0, 1), xlabel=label, ylabel="share that is right, %", aspect="equal")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(lambda value, _: f"{100 * value:.0f}")
    axes.tick_params(length=0)
    return figure


def _axes(names: Sequence[str], label: str, percent: bool) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(WIDTH, 3.2), layout="constrained")
    axes = figure.subplots()
    axes.grid(axis="y")
    axes.tick_params(length=0)
    shown = [short(name, 20) for name in names]
    crowded = sum(len(name) + 2 for name in shown) > 60
    turned: dict[str, Any] = {"rotation": 40, "ha": "right", "rotation_mode": "anchor"} if crowded else {}
    turned = {"rotation": 90, "fontsize": 6} if len(names) > 15 else turned
    axes.set_xticks(range(len(names)), shown, **turned)
    axes.set_xlim(-0.6, len(names) - 0.4)
    axes.set_ylabel(label)
    if percent:
        axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.3g}".replace("-", "−"))
    return figure, axes


def _named(figure: Figure, series: int) -> Figure:
    """Name the series below the figure, if there are several."""
    if series > 1:
        figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside lower left", ncols=series)
    return figure
