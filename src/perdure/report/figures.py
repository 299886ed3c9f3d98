"""A report's dict → figures, as SVG text; None where nothing was measured."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from perdure.report.heat_map import limits, matrix, readme_figure
from perdure.report.svg import short, svg

__all__ = ["accuracy", "forgetting", "limits", "losses", "matrix", "readme_figure", "search", "seconds"]

Summary = Mapping[str, Any]
# colours that colour-blind people can tell apart, after Okabe and Ito 2008
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#aa4499", "#56b4e9", "#b38600", "#555555")
# for each way to know the task: line, marker, and strength of a bar's colour
LOOKS = {"given": ("-", "o", 1.0), "posterior": ("--", "s", 0.6), "concatenated": (":", "^", 0.3)}
WIDTH = 4.9  # inches: 470 px, so that the text can still be read on a telephone
PERCENT = FuncFormatter(lambda value, _: f"{100 * value:.3g}".replace("-", "−"))


@svg
def accuracy(summary: Summary) -> Figure | None:
    """The mean score over the tasks seen, after each task: a line for each rule and way to know the task."""
    results = [(result, *look) for result, *look in _looks(summary) if _any(result["seen"])]
    if not results:
        return None
    figure, axes = _axes(len(results))
    for result, colour, (line, marker, _) in results:
        axes.plot(_gaps(result["seen"]), line, marker=marker, ms=5, color=colour, label=_label(result["label"]))
    _task_ticks(axes, _steps(summary))
    axes.set(xlabel="after learning", ylabel="mean score on tasks seen, %")
    axes.yaxis.set_major_formatter(PERCENT)
    return _with_legend(figure)


@svg
def forgetting(summary: Summary) -> Figure | None:
    """For each task but the last the best score before the end minus the last score."""
    bars = []
    for result, colour, (_, _, strength) in _looks(summary):
        values = dict(zip(result["tasks"], result["forgetting"], strict=False))
        bars.append((result["label"], values, colour, strength))
    figure = _bars(bars, "best score before minus last, points")
    if figure:
        figure.axes[0].yaxis.set_major_formatter(PERCENT)
    return figure


@svg
def seconds(summary: Summary) -> Figure | None:
    """The time that each task took to learn."""
    bars = []
    for i, run in enumerate(summary["runs"]):
        bars.append((run["title"], {task["name"]: task["seconds"] for task in run["tasks"]}, _colour(i), 1.0))
    return _bars(bars, "seconds")


@svg
def search(summary: Summary) -> Figure | None:
    """The validation score over the scale λ; the filled point is the one that was taken."""
    searches = [(i, run) for i, run in enumerate(summary["runs"]) if run["search"]]
    if not searches:
        return None
    figure, axes = _axes(len(searches))
    for i, run in searches:
        scales, scores = run["search"]["scales"], _gaps(run["search"]["scores"])
        axes.plot(scales, scores, "-o", color=_colour(i), mfc="white", label=_label(run["title"]))
        if run["search"]["chosen"] in scales:
            place = scales.index(run["search"]["chosen"])
            axes.plot(scales[place], scores[place], "o", color=_colour(i), ms=9)
    axes.set(xlabel="scale λ", ylabel="mean validation score, %")
    axes.yaxis.set_major_formatter(PERCENT)
    return _with_legend(figure)


@svg
def losses(summary: Summary) -> Figure | None:
    """The training loss, task by task, each from its first step to its last."""
    runs = [(i, run) for i, run in enumerate(summary["runs"]) if run["losses"]]
    if not runs:
        return None
    figure, axes = _axes(len(runs))
    for i, run in runs:
        names = [task["name"] for task in run["tasks"]]
        for number, curve in enumerate(run["losses"]):
            x = names.index(curve["task"]) - 0.46 + 0.92 * np.array(curve["steps"]) / max(curve["steps"])
            label = None if number else _label(run["title"])
            axes.plot(x, curve["loss"], color=_colour(i), lw=1.2, label=label)
    names = _steps(summary)
    _task_ticks(axes, names)
    axes.set(xlabel="while learning", ylabel="training loss", ylim=(0, None))
    for border in range(1, len(names)):
        axes.axvline(border - 0.5, color="#dddddd", lw=1)
    return _with_legend(figure)


# -- parts


def _looks(summary: Summary) -> list[tuple[Mapping[str, Any], str, tuple[str, str, float]]]:
    """Each result with a colour (the run's, for its first rule) and the line of how the task is known."""
    rules = [(i, result["rule"]) for i, run in enumerate(summary["runs"]) for result in run["results"]]
    first = dict(reversed(rules))
    others = list(dict.fromkeys((i, rule) for i, rule in rules if first[i] != rule))
    looks = []
    for (i, rule), result in zip(rules, (r for run in summary["runs"] for r in run["results"]), strict=True):
        number = i if first[i] == rule else len(summary["runs"]) + others.index((i, rule))
        looks.append((result, _colour(number), LOOKS.get(result["task_id"], ("-.", "d", 0.8))))
    return looks


def _colour(number: int) -> str:
    return COLOURS[number % len(COLOURS)]


def _axes(lines: int) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(WIDTH, 2.9 + 0.19 * (lines if lines > 1 else 0)), layout="constrained")
    axes = figure.subplots()
    axes.grid(axis="y")
    axes.tick_params(length=0)
    return figure, axes


def _with_legend(figure: Figure) -> Figure:
    """Name the lines or bars below the figure, if there are several."""
    handles, labels = figure.axes[0].get_legend_handles_labels()
    if len(handles) > 1:
        figure.legend(handles, labels, loc="outside lower left")
    return figure


def _label(text: str) -> str:
    return " " + short(text, 64)  # matplotlib hides labels that start with "_"


def _bars(bars: Sequence[tuple[str, Mapping[str, float | None], str, float]], label: str) -> Figure | None:
    """Groups of bars, one for each task; `bars` are label, values by task, colour and strength."""
    bars = [bar for bar in bars if _any(bar[1].values())]
    if not bars:
        return None
    names = list(dict.fromkeys(name for _, values, *_ in bars for name in values))
    figure, axes = _axes(len(bars))
    width = 0.84 / len(bars)
    for i, (name, values, colour, strength) in enumerate(bars):
        x = np.arange(len(names)) - 0.42 + (i + 0.5) * width
        heights = _gaps([values.get(task) for task in names])
        axes.bar(x, heights, 0.92 * width, color=(colour, strength), edgecolor=colour, lw=0.6, label=_label(name))
    axes.axhline(0, color="#888888", lw=0.8)
    _task_ticks(axes, names)
    axes.set_ylabel(label)
    return _with_legend(figure)


def _steps(summary: Summary) -> list[str]:
    """The tasks in their order, if it is that of all runs; else their numbers."""
    orders = sorted({tuple(task["name"] for task in run["tasks"]) for run in summary["runs"]}, key=len)
    longest = orders[-1]
    same = all(order == longest[: len(order)] for order in orders)
    return list(longest) if same else [f"task {i + 1}" for i in range(len(longest))]


def _task_ticks(axes: Axes, names: Sequence[str]) -> None:
    crowded = sum(len(short(name)) + 2 for name in names) > 60
    turned = {"rotation": 40, "ha": "right", "rotation_mode": "anchor"} if crowded else {}
    axes.set_xticks(range(len(names)), [short(name) for name in names], **turned)
    axes.set_xlim(-0.6, len(names) - 0.4)


def _gaps(values: Sequence[float | None]) -> list[float]:
    return [float("nan") if value is None else value for value in values]


def _any(values: Any) -> bool:
    return any(value is not None for value in values)
