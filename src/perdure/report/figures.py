"""A report's dict → figures with their numbers; none where nothing was measured."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from perdure.report.axes import (
    PERCENT,
    WIDTH,
    empty,
    gaps,
    left_out,
    name_tasks,
    shown,
    with_legend,
)
from perdure.report.picture import Cell, Picture
from perdure.report.series import DRAWN, Look, Looks, Summary, Way, compared, ways
from perdure.report.svg import INK, LINE, SOFT, svg

Values = Sequence[float | None]
PANELS, COLUMNS = 24, 4
"""The most tasks that have a panel each, and how many panels are side by side."""
RUNS_WITH_TASKS = 12
"""The most runs whose single tasks are compared."""


@dataclass(frozen=True)
class Line:
    """Points over the steps of a stream, with standard deviations where there are several seeds."""

    title: str
    look: Look
    values: Values
    spreads: Values = ()


# -- over the stream


def seen(summary: Summary, known: Sequence[Way]) -> Picture | None:
    """Draw the mean score over the tasks seen, after each task; the band is a standard deviation over seeds."""
    lines = []
    for series in compared(summary, known):
        means = [value["mean"] for value in series.result["seen"]]
        spreads = [value["sd"] for value in series.result["seen"]]
        if _any(means):
            lines.append(Line(series.title, series.look, means, spreads))
    if not lines:
        return None
    names = _steps(summary)
    image = _draw_lines(lines[:DRAWN], names, "after learning", "mean score on tasks seen, %")
    header, rows = _columns(lines, names)
    return Picture(
        f"Mean score on the tasks seen{_in(known)}{left_out(lines)}", image, header, rows
    )


def tasks(summary: Summary, known: Sequence[Way]) -> Picture | None:
    """Draw the score on each task over the stream, from where it was learned: a panel for each task."""
    if len(summary["runs"]) > RUNS_WITH_TASKS:
        return None
    panels = _panels(summary, known)
    points = [len(_known(line.values)) for lines in panels.values() for line in lines]
    if max(points, default=0) < 2:  # measured once only: the matrix shows all of it
        return None
    rows: list[list[Cell]] = []
    for task, lines in panels.items():
        for line in lines:
            for step, value in enumerate(line.values, start=1):
                if value is not None:
                    rows.append([task, line.title, step, value])
    drawn = dict(list(panels.items())[:PANELS])
    some = f" (drawn: {PANELS} of {len(panels)})" if len(panels) > PANELS else ""
    header = ["task", "run", "after task number", "score"]
    return Picture(f"Each task{_in(known)}{some}", _draw_panels(drawn), header, rows)


def _panels(summary: Summary, known: Sequence[Way]) -> dict[str, list[Line]]:
    """List, for each task, a line for each run and way to know the task, by the run's own rule."""
    looks = Looks(summary)
    panels: dict[str, list[Line]] = {}
    for task_id, words in known:
        for number, run in enumerate(summary["runs"]):
            look = looks.of_run(number, run["rule"], task_id)
            for result in run["results"]:
                if (result["rule"], result["task_id"]) != (run["rule"], task_id):
                    continue
                title = run["title"] if looks.several else words
                for place, task in enumerate(result["tasks"]):
                    before = [None] * place
                    values = [row[place] for row in result["matrix"][place:]]
                    panels.setdefault(task, []).append(Line(title, look, before + values))
    return panels


@svg
def _draw_panels(panels: Mapping[str, Sequence[Line]]) -> Figure:
    columns = min(COLUMNS, len(panels))
    count = -(-len(panels) // columns)
    labels = {line.title for lines in panels.values() for line in lines}
    size = (0.4 + 1.75 * columns, 0.6 + 1.5 * count + 0.19 * len(labels))
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.subplots(count, columns, sharex=True, sharey=True, squeeze=False)
    for axes, (task, lines) in zip(grid.flat, panels.items(), strict=False):
        axes.set_title(shown(task, 22))
        axes.grid(axis="y")
        axes.tick_params(length=0)
        for line in lines:
            _draw_line(axes, line, first=1)
        axes.yaxis.set_major_formatter(PERCENT)
        axes.xaxis.get_major_locator().set_params(integer=True)
    for axes in grid.flat[len(panels) :]:
        axes.set_visible(False)
    figure.supxlabel("after task number", fontsize=9)
    figure.supylabel("score, %", fontsize=9)
    return with_legend(figure)


def losses(summary: Summary) -> Picture | None:
    """Draw the training loss, task by task, each from its first step to its last."""
    curves = []
    looks = Looks(summary)
    rows: list[list[Cell]] = []
    for number, run in enumerate(summary["runs"]):
        if run["losses"]:
            curves.append((run["title"], looks.of_run(number, run["rule"]), run["losses"]))
        for curve in run["losses"]:
            for step, loss in zip(curve["steps"], curve["loss"], strict=True):
                rows.append([run["title"], curve["task"], step, loss])
    if not curves:
        return None
    title = f"Training loss{left_out(curves)}"
    return Picture(title, _draw_losses(curves[:DRAWN]), ["run", "task", "step", "loss"], rows)


@svg
def _draw_losses(curves: Sequence[tuple[str, Look, Sequence[Mapping[str, Any]]]]) -> Figure:
    names = list(dict.fromkeys(curve["task"] for _, _, losses in curves for curve in losses))
    figure, axes = empty(len(curves))
    for title, look, losses in curves:
        label = shown(title)
        for curve in losses:
            # All curves of a task lie between its two borders, whatever their number of steps.
            share = np.array(curve["steps"]) / max(curve["steps"])
            x = names.index(curve["task"]) - 0.46 + 0.92 * share
            marker = "o" if len(x) == 1 else ""
            axes.plot(
                x, curve["loss"], look.line, marker=marker, color=look.colour, lw=1.2, label=label
            )
            label = "_"  # matplotlib hides labels that begin so: one entry in the legend is enough
    name_tasks(axes, names)
    axes.set(xlabel="while learning", ylabel="training loss", ylim=(0, None))
    for border in range(1, min(len(names), 60)):
        axes.axvline(border - 0.5, color=LINE, lw=1)
    return with_legend(figure)


# -- stability and plasticity


def plane(summary: Summary, known: Sequence[Way]) -> Picture | None:
    """Draw new-task accuracy to the right and forgetting upwards: below to the right both are good."""
    points = []
    rows: list[list[Cell]] = []
    for series in compared(summary, known):
        learned = series.result["learned"]
        forgotten = series.result["metrics"].get("forgetting")
        if not forgotten or learned["mean"] is None or forgotten["mean"] is None:
            continue
        points.append((series, learned, forgotten))
        spreads = (learned["sd"], forgotten["sd"])
        rows.append(
            [series.title, learned["mean"], spreads[0], forgotten["mean"], spreads[1], learned["n"]]
        )
    if len(points) < 2:  # one point compares nothing, and its numbers are in the table of results
        return None
    title = f"Stability and plasticity{_in(known)}"
    if len(points) > DRAWN:
        title += " (numbers are those of the table)"
        rows = [[f"{number}  {row[0]}", *row[1:]] for number, row in enumerate(rows, start=1)]
    header = ["run", "new-task accuracy", "± sd", "forgetting", "± sd", "seeds"]
    return Picture(title, _draw_plane(points), header, rows)


@svg
def _draw_plane(points: Sequence[Any]) -> Figure:
    numbered = len(points) > DRAWN
    figure, axes = empty(0 if numbered else len(points))
    for number, (series, learned, forgotten) in enumerate(points, start=1):
        x, y = learned["mean"], forgotten["mean"]
        look = series.look
        axes.errorbar(
            x,
            y,
            xerr=learned["sd"] or 0,
            yerr=forgotten["sd"] or 0,
            color=look.colour,
            lw=1,
            capsize=2,
            zorder=1,
        )
        if numbered:
            axes.plot(x, y, ".", ms=8, color=look.colour)
            axes.annotate(str(number), (x, y), (3, 3), textcoords="offset points", color=INK)
        else:
            label = shown(series.title)
            axes.plot(x, y, look.marker, ms=8, ls="", color=look.colour, label=label)
    axes.grid(axis="x")
    axes.margins(0.12)
    axes.set(xlabel="new-task accuracy (plasticity), %", ylabel="forgetting, points")
    axes.xaxis.set_major_formatter(PERCENT)
    axes.yaxis.set_major_formatter(PERCENT)
    return with_legend(figure)


def forgetting(summary: Summary) -> Picture | None:
    """Draw bars of forgetting: for each task but the last its best score before the end less its last score.

    With more than three runs there is a bar for each group of them: the mean over its tasks.
    """
    bars = (
        _forgetting_of_tasks(summary)
        if len(summary["runs"]) <= 3
        else _forgetting_of_groups(summary)
    )
    bars = [(label, look, values) for label, look, values in bars if _any(list(values.values()))]
    names = list(dict.fromkeys(name for _, _, values in bars for name in values))
    drawn = [
        Line(label, look, [values.get(name) for name in names]) for label, look, values in bars
    ]
    if sum(len(_known(line.values)) for line in drawn) < 2:  # one bar compares nothing
        return None
    rows = [[name, *(line.values[place] for line in drawn)] for place, name in enumerate(names)]
    header = ["name", *(line.title for line in drawn)]
    return Picture("Forgetting, points", _draw_bars(drawn, names), header, rows)


Bars = list[tuple[str, Look, dict[str, float | None]]]


def _forgetting_of_tasks(summary: Summary) -> Bars:
    looks = Looks(summary)
    bars: Bars = []
    for number, run in enumerate(summary["runs"]):
        for result in run["results"]:
            if result["rule"] != run["rule"]:
                continue
            label = f"{run['title']} · {result['known']}" if looks.several else result["known"]
            look = looks.of_run(number, run["rule"], result["task_id"])
            bars.append(
                (label, look, dict(zip(result["tasks"], result["forgetting"], strict=False)))
            )
    return bars


def _forgetting_of_groups(summary: Summary) -> Bars:
    looks = Looks(summary)
    group = summary["groups"][0]
    bars: Bars = []
    for task_id, words in ways(summary):
        means = {}
        for series in compared(summary, [(task_id, words)]):
            means[series.title] = (series.result["metrics"].get("forgetting") or {}).get("mean")
        # The groups are named beside their bars, so that a bar's hatch is enough to tell the ways apart.
        hatch = looks.of(group["title"], summary["runs"][group["runs"][0]]["rule"], task_id).hatch
        bars.append((words, Look(hatch=hatch), means))
    return bars


# -- how lines and bars are drawn


@svg
def _draw_lines(lines: Sequence[Line], names: Sequence[str], below: str, beside: str) -> Figure:
    figure, axes = empty(len(lines))
    for line in lines:
        _draw_line(axes, line)
        if _any(line.spreads):
            middle = np.array(gaps(line.values))
            half = np.nan_to_num(np.array(gaps(line.spreads)))
            colour = line.look.colour
            axes.fill_between(
                range(len(middle)), middle - half, middle + half, color=colour, alpha=0.15, lw=0
            )
    name_tasks(axes, names)
    axes.set(xlabel=below, ylabel=beside)
    axes.yaxis.set_major_formatter(PERCENT)
    return with_legend(figure)


def _draw_line(axes: Axes, line: Line, *, first: int = 0) -> None:
    """Draw a line whose first value stands at `first`."""
    look = line.look
    marker = look.marker if len(line.values) <= 40 else ""
    steps = range(first, first + len(line.values))
    (drawn,) = axes.plot(
        steps,
        gaps(line.values),
        look.line,
        marker=marker,
        ms=4.5,
        color=look.colour,
        label=shown(line.title),
    )
    if len(_known(line.values)) == 1:
        # A single point has no line that leads to it: large, hollow and above the others it can still be seen.
        drawn.set(
            marker=look.marker, markersize=10, markerfacecolor="none", markeredgewidth=2, zorder=3
        )


@svg
def _draw_bars(bars: Sequence[Line], names: Sequence[str]) -> Figure:
    """Draw groups of bars that lie, one group for each name."""
    height = 0.9 + 0.19 * len(bars) + 0.3 * min(len(names), 60)
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    axes = figure.subplots()
    width = 0.84 / len(bars)
    for number, bar in enumerate(bars):
        y = np.arange(len(names)) - 0.42 + (number + 0.5) * width
        fill = {"facecolor": bar.look.colour, "hatch": bar.look.hatch, "edgecolor": LINE, "lw": 0}
        axes.barh(y, gaps(bar.values), 0.9 * width, label=shown(bar.title), **fill)
    axes.axvline(0, color=SOFT, lw=0.8)
    axes.grid(axis="x")
    axes.set(ylim=(len(names) - 0.5, -0.5))
    step = -(-len(names) // 60)
    axes.set_yticks(range(0, len(names), step), [shown(name, 34) for name in names[::step]])
    axes.tick_params(length=0)
    axes.xaxis.set_major_formatter(PERCENT)
    return with_legend(figure)


def _columns(lines: Sequence[Line], names: Sequence[str]) -> tuple[list[str], list[list[Cell]]]:
    """Make the table of lines: a column for each, and one for its spread over seeds if there is any."""
    header = ["task"]
    columns: list[Sequence[Cell]] = [names]
    for line in lines:
        for label, values in ((line.title, line.values), (f"{line.title}, ± sd", line.spreads)):
            if _any(values):
                missing = [None] * (len(names) - len(values))
                header.append(label)
                columns.append([*values, *missing][: len(names)])
    return header, [list(row) for row in zip(*columns, strict=True)]


def _in(known: Sequence[Way]) -> str:
    """Name the way to know the task, where there is only one."""
    return f" · {known[0][1]}" if len(known) == 1 else ""


def _steps(summary: Summary) -> list[str]:
    """Name the steps by their tasks, if all runs have the same order; else number them."""
    orders = sorted(
        {tuple(task["name"] for task in run["tasks"]) for run in summary["runs"]}, key=len
    )
    longest = orders[-1]
    if all(order == longest[: len(order)] for order in orders):
        return list(longest)
    return [f"task {number}" for number in range(1, len(longest) + 1)]


def _any(values: Values) -> bool:
    return bool(_known(values))


def _known(values: Values) -> list[float]:
    return [value for value in values if value is not None]
