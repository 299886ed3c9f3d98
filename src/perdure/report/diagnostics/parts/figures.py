"""The figures of diagnostics, as SVG text: lines, bars, and the reliability diagram."""

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from numpy import ndarray

from perdure.report.axes import PERCENT, empty, name_tasks, shown, with_legend
from perdure.report.series import LINES, MARKERS
from perdure.report.svg import SOFT, svg

GREYS = (1.0, 0.6, 0.3)
"""How strong the bars of each series are: colours stand for runs on the page, and these are all of one run."""
Values = Float[ndarray, " n"]


@svg
def lines(
    series: Mapping[str, Values], names: Sequence[str], beside: str, *, percent: bool = False
) -> Figure:
    """A line for each series of shares, over named steps; a tenth of height at least, so that noise stays small."""
    figure, axes = _axes(names, beside, percent, len(series))
    for i, (name, values) in enumerate(series.items()):
        marker = MARKERS[i % len(MARKERS)] if len(names) <= 40 else ""
        axes.plot(values, LINES[i % len(LINES)], marker=marker, color=SOFT, ms=5, label=shown(name))
    low, high = axes.get_ylim()
    high = min(high, 1.02)
    axes.set(xlabel="after learning", ylim=(min(low, high - 0.1), high))
    return with_legend(figure)


@svg
def bars(
    series: Mapping[str, Values],
    names: Sequence[str],
    beside: str,
    *,
    percent: bool = False,
    stacked: bool = False,
) -> Figure:
    """Bars for each name: one for each series, beside or on each other."""
    figure, axes = _axes(names, beside, percent, len(series))
    width, bottom = 0.8 / (1 if stacked else len(series)), np.zeros(len(names))
    for i, (name, values) in enumerate(series.items()):
        x = np.arange(len(names)) + (0 if stacked else -0.4 + (i + 0.5) * width)
        below = bottom if stacked else None
        axes.bar(
            x,
            values,
            0.92 * width,
            bottom=below,
            color=to_rgba(SOFT, GREYS[i % len(GREYS)]),
            label=shown(name),
        )
        bottom += np.nan_to_num(values)
    axes.axhline(0, color=SOFT, lw=0.8)
    return with_legend(figure)


@svg
def reliability(bins: Float[ndarray, "bins 5"], label: str) -> Figure:
    """The share that is right over the confidence; the diagonal is perfect. Strong bars hold more of the examples."""
    figure = Figure(figsize=(3.2, 3.2), layout="constrained")
    axes = figure.subplots()
    low, high, count, _, accuracy = bins.T
    strength = 0.25 + 0.75 * np.nan_to_num(count) / max(1.0, np.nan_to_num(count).max(initial=0))
    colours = [to_rgba(SOFT, alpha) for alpha in strength]
    axes.bar(low, np.nan_to_num(accuracy), high - low, align="edge", color=colours, lw=0)
    axes.plot([0, 1], [0, 1], "--", color=SOFT, lw=1)
    axes.set(
        xlim=(0, 1), ylim=(0, 1), xlabel=label, ylabel="share that is right, %", aspect="equal"
    )
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(lambda value, _: f"{100 * value:.0f}")
    axes.tick_params(length=0)
    return figure


def _axes(names: Sequence[str], beside: str, percent: bool, lines: int) -> tuple[Figure, Axes]:
    figure, axes = empty(lines)
    name_tasks(axes, names)
    axes.set_ylabel(beside)
    if percent:
        axes.yaxis.set_major_formatter(PERCENT)
    return figure, axes
