"""A report's dict → figures, as SVG text. matplotlib's global state is neither read nor changed."""

import functools
import io
import re
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ParamSpec

import matplotlib
import matplotlib.style
import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator
from numpy import ndarray

from perdure.report.markdown import percent
from perdure.report.summary import TASK_IDS

P = ParamSpec("P")
Summary = Mapping[str, Any]
STYLE = {
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#888888",
    "axes.labelcolor": "#333333",
    "text.color": "#222222",
    "xtick.color": "#555555",
    "ytick.color": "#555555",
    "xtick.labelcolor": "#222222",
    "ytick.labelcolor": "#222222",
    "legend.frameon": False,
    "text.parse_math": False,  # a `$` in a name is a `$`
    "svg.fonttype": "none",  # text stays text: it can be searched, and the reader's fonts have its letters
    "svg.hashsalt": "perdure",  # the same dict gives the same bytes
}
MAP = matplotlib.colormaps["viridis"]
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#aa4499", "#56b4e9", "#b38600", "#555555")  # after Okabe and Ito 2008
LINES = {"given": ("-", "o", 1.0), "posterior": ("--", "s", 0.65), "concatenated": (":", "^", 0.35)}  # style, marker, strength
WIDTH = 4.9  # inches


def _svg(draw: Callable[P, Figure | None]) -> Callable[P, str | None]:
    """Let a function that draws a figure return it as SVG, or None if there was nothing to draw."""

    @functools.wraps(draw)
    def drawn(*args: P.args, **kwargs: P.kwargs) -> str | None:
        with matplotlib.style.context(["default", STYLE]), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Glyph .* missing from font")  # the reader's fonts are used, not ours
            if (figure := draw(*args, **kwargs)) is None:
                return None
            text = io.StringIO()
            nothing = {"Date": None, "Creator": None, "Format": None, "Type": None}
            tight = None if figure.get_layout_engine() else "tight"
            figure.savefig(text, format="svg", metadata=nothing, facecolor="white", bbox_inches=tight, pad_inches=0.05)
        return re.sub(r"\A.*?(?=<svg)", "", text.getvalue(), flags=re.DOTALL)  # what stands before it has no place in HTML

    return drawn


# -- the accuracy matrix


@_svg
def matrix(result: Mapping[str, Any], limits: tuple[float, float]) -> Figure:
    """R as a heat map: after learning the row's task, the score on the column's. Rows never measured are left out."""
    n = len(result["tasks"])
    cell = 0.5 if n <= 8 else 0.38
    shown = _shown(result)
    figure = Figure(figsize=(n * cell, len(shown) * cell))
    _heat(figure.add_axes((0, 0, 1, 1)), result, limits, digits=1 if n <= 8 else 0)
    return figure


def limits(results: Iterable[Mapping[str, Any]]) -> tuple[float, float]:
    """Where the colours of all matrices begin and end: the tenths around their values."""
    values = [value for result in results for row in result["matrix"] for value in row if value is not None]
    low, high = (np.floor(10 * min(values)) / 10, np.ceil(10 * max(values)) / 10) if values else (0.0, 1.0)
    return float(low), float(max(high, low + 0.1))


def _shown(result: Mapping[str, Any]) -> list[int]:
    return [i for i, row in enumerate(result["matrix"]) if any(value is not None for value in row)] or [0]


def _heat(axes: Axes, result: Mapping[str, Any], limits: tuple[float, float], *, digits: int = 1, rows: bool = True) -> Any:
    """Draw the matrix; `rows` says whether they are named."""
    shown, names = _shown(result), [_short(name) for name in result["tasks"]]
    R: Float[ndarray, "steps tasks"] = np.array(result["matrix"], dtype=float)[shown]
    image = axes.imshow(R, cmap=MAP, vmin=limits[0], vmax=limits[1], aspect="equal")
    for (i, j), value in np.ndenumerate(R):
        if np.isfinite(value):
            ink = _ink(image.to_rgba(value)[:3])
            axes.text(j, i, f"{100 * value:.{digits}f}", ha="center", va="center", color=ink, fontsize=8.5)
    axes.set_xticks(range(len(names)), names, rotation=40, ha="left", rotation_mode="anchor")
    axes.set_yticks(range(len(shown)), [f"after {names[i]}" if rows else "" for i in shown])
    axes.set_xticks(np.arange(len(names) - 1) + 0.5, minor=True)
    axes.set_yticks(np.arange(len(shown) - 1) + 0.5, minor=True)
    axes.grid(which="minor", color="white", linewidth=1.5)
    axes.tick_params(which="both", length=0, labelbottom=False, labeltop=True, bottom=False)
    axes.spines[:].set_visible(False)
    return image


def _ink(colour: Sequence[float]) -> str:
    """Black or white, whichever has the higher contrast on a colour (WCAG 2)."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in colour]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return "#111111" if (luminance + 0.05) ** 2 > 1.05 * 0.05 else "white"


@_svg
def readme_figure(summary: Summary, task_ids: Sequence[str] = (), titles: Sequence[str] = ()) -> Figure | None:
    """The matrices of up to three runs side by side, under the run's own rule, with common colours.

    Parameters
    ----------
    task_ids
        For each run how the task is known; by default the first of posterior, concatenated, given that was measured.
    titles
        For each run what stands above; by default its title and how the task is known.
    """
    results = [_pick(run, task_ids[i : i + 1]) for i, run in enumerate(summary["runs"][:3])]
    found = [(i, result) for i, result in enumerate(results) if result]
    if not found:
        return None
    same = len({tuple(result["tasks"]) for _, result in found}) == 1
    figure = Figure(figsize=(9.375, 5.2 if len(found) < 3 else 4.2), layout="constrained")
    panels = figure.subplots(1, len(found), squeeze=False)[0]
    for place, (axes, (i, result)) in enumerate(zip(panels, found, strict=True)):
        image = _heat(axes, result, limits([result for _, result in found]), rows=place == 0 or not same)
        title = titles[i] if i < len(titles) else f"{_short(summary['runs'][i]['title'])}, {_known(result)}"
        mean = percent(result["metrics"]["average_accuracy"])
        axes.set_title(title, fontsize=12, fontweight="bold", pad=24)
        axes.text(0.5, -0.04, f"average accuracy {mean}", transform=axes.transAxes, ha="center", va="top", fontsize=11)
    bar = figure.colorbar(image, ax=list(panels), shrink=0.6, aspect=25, format=FuncFormatter(_percent_tick))
    bar.outline.set_visible(False)  # pyright: ignore
    bar.set_label("accuracy, %")
    return figure


def _pick(run: Mapping[str, Any], wanted: Sequence[str]) -> Mapping[str, Any] | None:
    own = [result for result in run["results"] if result["rule"] == run["rule"]] or run["results"]
    order = [*wanted] or ["posterior", "concatenated", "given"]
    return next((result for task_id in order for result in own if result["task_id"] == task_id), None)


# -- lines and bars


@_svg
def accuracy(summary: Summary) -> Figure | None:
    """The mean score over the tasks seen, after each task."""
    results = [result for run in summary["runs"] for result in run["results"] if _any(result["seen"])]
    return _chart(summary, results, "seen", "accuracy on tasks seen, %")


def _chart(summary: Summary, results: Sequence[Mapping[str, Any]], values: str, label: str) -> Figure | None:
    if not results:
        return None
    figure, axes = _axes(3.2 + 0.17 * len(results))
    for result in results:
        line, marker, _ = _style(result)
        colour = _colour(summary, result)
        axes.plot(_gaps(result[values]), line, marker=marker, color=colour, label=_legend(result["label"]), markersize=5)
    _name_ticks(axes, summary)
    axes.set_ylabel(label)
    axes.yaxis.set_major_formatter(FuncFormatter(_percent_tick))
    axes.grid(axis="y", color="#e5e5e5")
    return figure
