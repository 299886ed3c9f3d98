"""What all charts of a report have in common: size, ticks that name tasks, and a legend below."""

from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from perdure.report.series import DRAWN
from perdure.report.svg import short

WIDTH = 4.9  # inches: 470 px, so that the text can still be read on a telephone
PERCENT = FuncFormatter(lambda value, _: f"{100 * value:.3g}".replace("-", "−"))


def empty(lines: int) -> tuple[Figure, Axes]:
    """A figure with room for a legend of so many lines."""
    figure = Figure(figsize=(WIDTH, 2.9 + 0.19 * (lines if lines > 1 else 0)), layout="constrained")
    axes = figure.subplots()
    axes.grid(axis="y")
    axes.tick_params(length=0)
    return figure, axes


def name_tasks(axes: Axes, names: Sequence[str]) -> None:
    """Names below the axis: of many some, and turned where there is no room."""
    step = -(-len(names) // 20)
    some = names[::step]
    crowded = sum(len(short(name)) + 2 for name in some) > 60
    turned = {"rotation": 40, "ha": "right", "rotation_mode": "anchor"} if crowded else {}
    axes.set_xticks(range(0, len(names), step), [shown(name, 28) for name in some], **turned)
    axes.set_xlim(-0.6, len(names) - 0.4)


def shown(text: str, length: int = 64) -> str:
    """A label that matplotlib shows: it hides those that start with "_"."""
    return " " + short(text, length)


def with_legend(figure: Figure) -> Figure:
    """Name the lines or bars below the figure, if there are several."""
    handles = {}
    for axes in figure.axes:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    if len(handles) > 1:
        figure.legend(list(handles.values()), list(handles), loc="outside lower left")
    return figure


def left_out(lines: Sequence[Any]) -> str:
    """Say, for a caption, how many lines of many are drawn."""
    return f" (drawn: {DRAWN} of {len(lines)})" if len(lines) > DRAWN else ""


def gaps(values: Sequence[float | None]) -> list[float]:
    """Return values with nan where there is none, which matplotlib leaves out."""
    return [float("nan") if value is None else value for value in values]
