"""The frame that all charts of a report share: their size, task labels and legend."""

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from perdure.report.series import DRAWN
from perdure.report.svg import short

WIDTH = 4.9  # inches: 470 px, so that the text is still readable on a phone
PERCENT = FuncFormatter(lambda value, _: f"{100 * value:.3g}".replace("-", "−"))


def empty(lines: int) -> tuple[Figure, Axes]:
    """Return an empty figure with room for a legend of `lines` lines; a single line needs none."""
    # Inches. The constrained layout makes room for a legend outside of the axes.
    legend = 0.19 * (lines if lines > 1 else 0)
    figure = Figure(figsize=(WIDTH, 2.9 + legend), layout="constrained")
    axes = figure.subplots()
    axes.grid(axis="y")
    axes.tick_params(length=0)
    return figure, axes


def name_tasks(axes: Axes, names: Sequence[str]) -> None:
    """Label the x-axis with at most 20 names, which are rotated if there is not enough room."""
    step = -(-len(names) // 20)  # rounded up
    labelled = names[::step]
    # About 60 characters fit into the width of a figure.
    letters = sum(len(short(name)) + 2 for name in labelled)
    turned = {}
    if letters > 60:
        # Rotated around its end, so that a name points to its tick.
        turned = {"rotation": 40, "ha": "right", "rotation_mode": "anchor"}
    labels = [shown(name, 28) for name in labelled]
    ticks = range(0, len(names), step)
    axes.set_xticks(ticks, labels, **turned)
    # Set explicitly, because matplotlib would end the axis where the data end.
    axes.set_xlim(-0.6, len(names) - 0.4)


def shown(text: str, length: int = 64) -> str:
    """Shorten a label and put a space before it: matplotlib hides labels that start with "_"."""
    return " " + short(text, length)


def with_legend(figure: Figure) -> Figure:
    """Add a legend below a figure with several series of lines or bars."""
    # Panels repeat their labels; the first line of each name is enough.
    handles = {}
    for axes in figure.axes:
        drawn, labels = axes.get_legend_handles_labels()
        for handle, label in zip(drawn, labels, strict=True):
            handles.setdefault(label, handle)
    if len(handles) > 1:
        figure.legend(
            list(handles.values()),
            list(handles),
            loc="outside lower left",
        )
    return figure


def left_out(lines: Sequence[object]) -> str:
    """Return the part of a caption that says how many lines are drawn; empty if all are."""
    if len(lines) <= DRAWN:
        return ""
    return f" (drawn: {DRAWN} of {len(lines)})"


def gaps(values: Sequence[float | None]) -> list[float]:
    """Replace None with nan, for which matplotlib leaves a gap."""
    return [float("nan") if value is None else value for value in values]
