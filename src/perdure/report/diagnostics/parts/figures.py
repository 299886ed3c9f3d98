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
"""The opacity of the grey of each series; colours are not used, as they distinguish runs."""
Values = Float[ndarray, " n"]


@svg
def lines(
    series: Mapping[str, Values], names: Sequence[str], beside: str, *, percent: bool = False
) -> Figure:
    """Draw a line for each series of shares over named steps; `beside` labels the y-axis."""
    figure, axes = _axes(names, beside, percent, len(series))
    for number, (name, values) in enumerate(series.items()):
        marker = MARKERS[number % len(MARKERS)]
        axes.plot(
            values,
            LINES[number % len(LINES)],
            marker=marker if len(names) <= 40 else "",  # more would touch each other
            color=SOFT,
            ms=5,
            label=shown(name),
        )
    low, high = axes.get_ylim()
    # Shares end at 1; the margin keeps a line at the top fully visible.
    high = min(high, 1.02)
    # The axis spans at least 0.1, so that noise looks small.
    low = min(low, high - 0.1)
    axes.set(xlabel="after learning", ylim=(low, high))
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
    """Draw bars for each name, with one bar for each series, side by side or stacked."""
    figure, axes = _axes(names, beside, percent, len(series))
    # The bars of a name take up 0.8 of its width, from -0.4 to 0.4.
    width = 0.8 if stacked else 0.8 / len(series)
    bottom = np.zeros(len(names))
    for number, (name, values) in enumerate(series.items()):
        x = np.arange(len(names))
        if not stacked:
            offset = -0.4 + (number + 0.5) * width
            x = x + offset
        strength = GREYS[number % len(GREYS)]
        axes.bar(
            x,
            values,
            0.92 * width,
            bottom=bottom if stacked else None,
            color=to_rgba(SOFT, strength),
            label=shown(name),
        )
        # An undefined value has no height, and must not make the position of the next one nan.
        bottom += np.nan_to_num(values)
    axes.axhline(0, color=SOFT, lw=0.8)
    return with_legend(figure)


@svg
def reliability(bins: Float[ndarray, "bins 5"], label: str) -> Figure:
    """Draw accuracy against confidence; perfect calibration is on the diagonal.

    The stronger the colour of a bar, the more examples it represents.
    """
    figure = Figure(figsize=(3.2, 3.2), layout="constrained")
    axes = figure.subplots()
    low, high, count, _, accuracy = bins.T
    counts = np.nan_to_num(count)
    strengths = 0.25 + 0.75 * counts / max(1.0, counts.max(initial=0))
    axes.bar(
        low,
        np.nan_to_num(accuracy),
        high - low,
        align="edge",
        color=[to_rgba(SOFT, strength) for strength in strengths],
        lw=0,
    )
    axes.plot(
        [0, 1],
        [0, 1],
        "--",
        color=SOFT,
        lw=1,
    )
    axes.set(
        xlim=(0, 1),
        ylim=(0, 1),
        xlabel=label,
        ylabel="share that is right, %",
        aspect="equal",
    )
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(lambda value, _: f"{100 * value:.0f}")
    axes.tick_params(length=0)
    return figure


@svg
def risk(points: Float[ndarray, "thresholds 3"]) -> Figure:
    """Draw the risk against the coverage; the columns are threshold, coverage and risk."""
    figure = Figure(figsize=(3.2, 3.2), layout="constrained")
    axes = figure.subplots()
    _, coverage, wrong = points.T
    axes.plot(
        coverage,
        wrong,
        color=SOFT,
        marker=MARKERS[0],
        ms=4,
    )
    # The axis spans at least 0.1, so that noise looks small.
    axes.set(
        xlim=(0, 1.02),
        ylim=(0, max(0.1, 1.05 * wrong.max())),
        xlabel="share that is answered, %",
        ylabel="share of the answers that is wrong, %",
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
