"""A report's dict → figures with their numbers, or None if nothing was measured."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

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
from perdure.report.plain import Record, Summary
from perdure.report.series import DRAWN, Look, Looks, Series, Way, compared, of_task, ways
from perdure.report.svg import INK, LINE, SOFT, svg

Values = Sequence[float | None]
PANELS = 24
"""The maximum number of tasks that get a panel each."""
COLUMNS = 4
"""The maximum number of panels side by side."""
RUNS_WITH_TASKS = 12
"""The maximum number of runs that are compared task by task."""
MARKED = 40
"""Lines with more points than this are drawn without markers."""


@dataclass(frozen=True)
class Line:
    """A line over the steps of a stream, with standard deviations if there are several seeds."""

    title: str
    look: Look
    values: Values
    spreads: Values = ()


# -- over the stream


def seen(summary: Summary, known: Sequence[Way]) -> Picture | None:
    """Draw the mean score on the tasks seen so far, after each task.

    A band of one standard deviation over seeds is drawn around the mean.
    """
    lines = []
    for series in compared(summary, known):
        means = [value["mean"] for value in series.result["seen"]]
        spreads = [value["sd"] for value in series.result["seen"]]
        if _any(means):
            lines.append(Line(series.title, series.look, means, spreads))
    if not lines:
        return None
    names = _steps(summary)
    header, rows = _columns(lines, names)
    return Picture(
        caption=f"Mean score on the tasks seen{_in(known)}{left_out(lines)}",
        svg=_draw_seen(lines[:DRAWN], names),
        header=header,
        rows=rows,
    )


def tasks(summary: Summary, known: Sequence[Way]) -> Picture | None:
    """Draw a panel for each task, with its scores from the step at which it was learned."""
    if len(summary["runs"]) > RUNS_WITH_TASKS:
        return None
    panels = _panels(summary, known)
    longest = 0
    rows: list[list[Cell]] = []
    for task, lines in panels.items():
        for line in lines:
            longest = max(longest, len(_known(line.values)))
            for step, value in enumerate(line.values, start=1):
                if value is not None:
                    rows.append([task, line.title, step, value])
    # Tasks that were measured only once have no curve, and the matrix shows their scores.
    if longest < 2:
        return None
    some = ""
    if len(panels) > PANELS:
        some = f" (drawn: {PANELS} of {len(panels)})"
    drawn = dict(list(panels.items())[:PANELS])
    return Picture(
        caption=f"Each task{_in(known)}{some}",
        svg=_draw_panels(drawn),
        header=["task", "run", "after task number", "score"],
        rows=rows,
    )


def _panels(summary: Summary, known: Sequence[Way]) -> dict[str, list[Line]]:
    """Return the lines to draw for each task: one per run and `task_id`, by the run's rule."""
    looks = Looks(summary)
    panels: dict[str, list[Line]] = {}
    for task_id, words in known:
        for number, run in enumerate(summary["runs"]):
            look = looks.of_run(number, run["rule"], task_id)
            title = run["title"] if looks.several else words
            for result in run["results"]:
                if (result["rule"], result["task_id"]) != (run["rule"], task_id):
                    continue
                for column in range(len(result["tasks"])):
                    task = of_task(result, column)
                    before = [None] * column
                    values = [row[column] for row in result["matrix"][column:]]
                    line = Line(title, look, before + values)
                    panels.setdefault(task, []).append(line)
    return panels


@svg
def _draw_panels(panels: Mapping[str, Sequence[Line]]) -> Figure:
    columns = min(COLUMNS, len(panels))
    count = -(-len(panels) // columns)  # rounded up
    labels = set()
    for lines in panels.values():
        labels.update(line.title for line in lines)
    # Inches: a panel, and room for the labels of the axes and the legend.
    width = 0.4 + 1.75 * columns
    height = 0.6 + 1.5 * count + 0.19 * len(labels)
    figure = Figure(figsize=(width, height), layout="constrained")
    grid = figure.subplots(count, columns, sharex=True, sharey=True, squeeze=False)
    # The last row of the grid may not be full.
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
    """Draw the training loss of each run, task by task."""
    curves = []
    looks = Looks(summary)
    rows: list[list[Cell]] = []
    for number, run in enumerate(summary["runs"]):
        if run["losses"]:
            look = looks.of_run(number, run["rule"])
            curves.append((run["title"], look, run["losses"]))
        for curve in run["losses"]:
            for step, loss in zip(curve["steps"], curve["loss"], strict=True):
                rows.append([run["title"], curve["task"], step, loss])
    if not curves:
        return None
    return Picture(
        caption=f"Training loss{left_out(curves)}",
        svg=_draw_losses(curves[:DRAWN]),
        header=["run", "task", "step", "loss"],
        rows=rows,
    )


@svg
def _draw_losses(curves: Sequence[tuple[str, Look, Sequence[Record]]]) -> Figure:
    tasks: dict[str, None] = {}
    for _, _, losses in curves:
        for curve in losses:
            tasks[curve["task"]] = None
    names = list(tasks)
    figure, axes = empty(len(curves))
    for title, look, losses in curves:
        label = shown(title)
        for curve in losses:
            # All curves of a task are drawn between its two borders, whatever their length.
            share = np.array(curve["steps"]) / max(curve["steps"])
            x = names.index(curve["task"]) - 0.46 + 0.92 * share
            axes.plot(
                x,
                curve["loss"],
                look.line,
                marker="o" if len(x) == 1 else "",  # one point makes no line
                color=look.colour,
                lw=1.2,
                label=label,
            )
            # matplotlib hides labels that start with "_": one entry in the legend is enough.
            label = "_"
    name_tasks(axes, names)
    axes.set(xlabel="while learning", ylabel="training loss", ylim=(0, None))
    # With more tasks the borders would cover the curves.
    for border in range(1, min(len(names), 60)):
        axes.axvline(border - 0.5, color=LINE, lw=1)
    return with_legend(figure)


# -- stability and plasticity


@dataclass(frozen=True)
class Point:
    """The new-task score and the forgetting of a result, as means and deviations over seeds."""

    series: Series
    learned: Record
    forgotten: Record


def plane(summary: Summary, known: Sequence[Way]) -> Picture | None:
    """Plot forgetting against the new-task score; the best results are at the lower right."""
    points = []
    for series in compared(summary, known):
        learned = series.result["learned"]
        forgotten = series.result["metrics"].get("forgetting")
        if not forgotten or learned["mean"] is None or forgotten["mean"] is None:
            continue
        points.append(Point(series, learned, forgotten))
    # A single point has nothing to be compared with, and its numbers are in the table of results.
    if len(points) < 2:
        return None
    numbered = len(points) > DRAWN
    title = f"Stability and plasticity{_in(known)}"
    if numbered:
        title += " (numbered as in the table)"
    rows: list[list[Cell]] = []
    for number, point in enumerate(points, start=1):
        name = point.series.title
        rows.append(
            [
                f"{number}  {name}" if numbered else name,
                point.learned["mean"],
                point.learned["sd"],
                point.forgotten["mean"],
                point.forgotten["sd"],
                point.learned["n"],
            ]
        )
    header = ["run", "new-task score", "± sd", "forgetting", "± sd", "seeds"]
    return Picture(
        caption=title,
        svg=_draw_plane(points),
        header=header,
        rows=rows,
    )


@svg
def _draw_plane(points: Sequence[Point]) -> Figure:
    # If there are too many points to tell apart by their style, they get numbers, and no legend.
    numbered = len(points) > DRAWN
    figure, axes = empty(0 if numbered else len(points))
    for number, point in enumerate(points, start=1):
        x = point.learned["mean"]
        y = point.forgotten["mean"]
        look = point.series.look
        axes.errorbar(
            x,
            y,
            xerr=point.learned["sd"] or 0,
            yerr=point.forgotten["sd"] or 0,
            color=look.colour,
            lw=1,
            capsize=2,
            zorder=1,
        )
        if numbered:
            axes.plot(x, y, ".", ms=8, color=look.colour)
            axes.annotate(str(number), (x, y), (3, 3), textcoords="offset points", color=INK)
        else:
            label = shown(point.series.title)
            axes.plot(x, y, look.marker, ms=8, ls="", color=look.colour, label=label)
    axes.grid(axis="x")
    axes.margins(0.12)
    axes.set(xlabel="new-task score (plasticity), %", ylabel="forgetting, points")
    axes.xaxis.set_major_formatter(PERCENT)
    axes.yaxis.set_major_formatter(PERCENT)
    return with_legend(figure)


def forgetting(summary: Summary) -> Picture | None:
    """Draw the forgetting of each task but the last: its best earlier score minus its last score.

    With more than three runs, each group of runs has only one bar: the mean over its tasks.
    """
    if len(summary["runs"]) <= 3:
        bars = _forgetting_of_tasks(summary)
    else:
        bars = _forgetting_of_groups(summary)
    bars = [bar for bar in bars if _any(list(bar.values.values()))]
    names: dict[str, None] = {}
    for bar in bars:
        names |= dict.fromkeys(bar.values)
    drawn = []
    for bar in bars:
        values = [bar.values.get(name) for name in names]
        drawn.append(Line(bar.title, bar.look, values))
    # A single bar has nothing to be compared with.
    if sum(len(_known(line.values)) for line in drawn) < 2:
        return None
    rows = []
    for number, name in enumerate(names):
        rows.append([name, *(line.values[number] for line in drawn)])
    header = ["name", *(line.title for line in drawn)]
    return Picture(
        caption="Forgetting, points",
        svg=_draw_bars(drawn, list(names)),
        header=header,
        rows=rows,
    )


@dataclass(frozen=True)
class Bars:
    """A series of bars: a value for each name, None if it is unknown."""

    title: str
    look: Look
    values: Mapping[str, float | None]


def _forgetting_of_tasks(summary: Summary) -> list[Bars]:
    looks = Looks(summary)
    bars = []
    for number, run in enumerate(summary["runs"]):
        for result in run["results"]:
            if result["rule"] != run["rule"]:
                continue
            title = result["known"]
            if looks.several:
                title = f"{run['title']} · {title}"
            look = looks.of_run(number, run["rule"], result["task_id"])
            # Nothing of the last task can be forgotten yet, so there is one value fewer than tasks.
            values = dict(zip(result["tasks"], result["forgetting"], strict=False))
            bars.append(Bars(title, look, values))
    return bars


def _forgetting_of_groups(summary: Summary) -> list[Bars]:
    looks = Looks(summary)
    group = summary["groups"][0]
    rule = summary["runs"][group["runs"][0]]["rule"]
    bars = []
    for task_id, words in ways(summary):
        means = {}
        for series in compared(summary, [(task_id, words)]):
            average = series.result["metrics"].get("forgetting") or {}
            means[series.title] = average.get("mean")
        # The groups are named next to their bars; a hatch is enough to tell the `task_id`s apart.
        hatch = looks.of(group["title"], rule, task_id).hatch
        bars.append(Bars(words, Look(hatch=hatch), means))
    return bars


# -- how lines and bars are drawn


@svg
def _draw_seen(lines: Sequence[Line], names: Sequence[str]) -> Figure:
    figure, axes = empty(len(lines))
    for line in lines:
        _draw_line(axes, line)
        if _any(line.spreads):
            means = np.array(gaps(line.values))
            # A step with a single seed has no deviation, so its band has no width.
            deviations = np.nan_to_num(np.array(gaps(line.spreads)))
            axes.fill_between(
                range(len(means)),
                means - deviations,
                means + deviations,
                color=line.look.colour,
                alpha=0.15,
                lw=0,
            )
    name_tasks(axes, names)
    axes.set(xlabel="after learning", ylabel="mean score on tasks seen, %")
    axes.yaxis.set_major_formatter(PERCENT)
    return with_legend(figure)


def _draw_line(axes: Axes, line: Line, *, first: int = 0) -> None:
    """Draw a line whose first value is at position `first`."""
    look = line.look
    steps = range(first, first + len(line.values))
    (drawn,) = axes.plot(
        steps,
        gaps(line.values),
        look.line,
        marker=look.marker if len(steps) <= MARKED else "",
        ms=4.5,
        color=look.colour,
        label=shown(line.title),
    )
    if len(_known(line.values)) == 1:
        # A single point has no line that leads to it. It is drawn large, hollow and above
        # the others, to be visible.
        drawn.set(
            marker=look.marker,
            markersize=10,
            markerfacecolor="none",
            markeredgewidth=2,
            zorder=3,
        )


@svg
def _draw_bars(bars: Sequence[Line], names: Sequence[str]) -> Figure:
    """Draw groups of horizontal bars, one group for each name."""
    height = 0.9 + 0.19 * len(bars) + 0.3 * min(len(names), 60)
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    axes = figure.subplots()
    # The bars of a name take up 0.84 of its row, from -0.42 to 0.42.
    width = 0.84 / len(bars)
    for number, bar in enumerate(bars):
        y = np.arange(len(names)) - 0.42 + (number + 0.5) * width
        axes.barh(
            y,
            gaps(bar.values),
            0.9 * width,
            label=shown(bar.title),
            facecolor=bar.look.colour,
            hatch=bar.look.hatch,
            edgecolor=LINE,
            lw=0,
        )
    axes.axvline(0, color=SOFT, lw=0.8)
    axes.grid(axis="x")
    axes.set(ylim=(len(names) - 0.5, -0.5))
    step = -(-len(names) // 60)  # rounded up: at most 60 names
    labels = [shown(name, 34) for name in names[::step]]
    axes.set_yticks(range(0, len(names), step), labels)
    axes.tick_params(length=0)
    axes.xaxis.set_major_formatter(PERCENT)
    return with_legend(figure)


def _columns(lines: Sequence[Line], names: Sequence[str]) -> tuple[list[str], list[list[Cell]]]:
    """Return the header and the rows of a table of lines.

    Each line has a column for its values, and another for its spread over seeds, if there is one.
    """
    header = ["task"]
    columns: list[Sequence[Cell]] = [names]
    for line in lines:
        header.append(line.title)
        columns.append(_filled(line.values, len(names)))
        if _any(line.spreads):
            header.append(f"{line.title}, ± sd")
            columns.append(_filled(line.spreads, len(names)))
    return header, [list(row) for row in zip(*columns, strict=True)]


def _filled(values: Values, length: int) -> list[Cell]:
    """Return `length` values, with None for the steps that a shorter stream does not have."""
    missing = [None] * (length - len(values))
    return [*values, *missing][:length]


def _in(known: Sequence[Way]) -> str:
    """Return the part of a caption that names the `task_id`; empty if there are several."""
    return f" · {known[0][1]}" if len(known) == 1 else ""


def _steps(summary: Summary) -> list[str]:
    """Return a name for each step: its task if all runs have the same order, else its number."""
    orders = []
    for run in summary["runs"]:
        orders.append([task["name"] for task in run["tasks"]])
    longest = max(orders, key=len)
    # An unfinished run has learned only the first few of the tasks.
    if all(order == longest[: len(order)] for order in orders):
        return longest
    return [f"task {number}" for number in range(1, len(longest) + 1)]


def _any(values: Values) -> bool:
    return bool(_known(values))


def _known(values: Values) -> list[float]:
    return [value for value in values if value is not None]
