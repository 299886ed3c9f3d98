"""A report's dict → figures with their numbers; none where nothing was measured."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from perdure.report.axes import COLOURS, PERCENT, WIDTH, colour_of, empty, name_tasks, shown, with_legend
from perdure.report.picture import Picture
from perdure.report.svg import INK, LINE, SOFT, svg

Summary = Mapping[str, Any]
Series = tuple[str, Sequence[float | None], Sequence[float | None]]  # a label, means, standard deviations
LINES, MARKERS = ("-", "--", ":", "-."), "os^Dv<>P"
DRAWN = 16  # so many lines can be told apart


def ways(summary: Summary) -> list[tuple[str, str]]:
    """The ways to know the task that any run was measured with: key and words."""
    found = {result["task_id"]: result["known"] for run in summary["runs"] for result in run["results"]}
    return [(key, found[key]) for key in ("posterior", "concatenated", "given") if key in found] + [
        (key, words) for key, words in found.items() if key not in ("posterior", "concatenated", "given")
    ]


def own(summary: Summary, known: Sequence[tuple[str, str]]) -> list[tuple[str, Mapping[str, Any]]]:
    """Title and result of each group of runs in these ways to know the task; of all its rules where there is room."""
    found = [
        (group, result)
        for task_id, _ in known
        for group in summary["groups"]
        for result in group["results"]
        if result["task_id"] == task_id and result["metric"] == "accuracy"
    ]
    if len(found) > DRAWN:
        found = [(group, result) for group, result in found if result["own"]]
    titled, ruled = len(summary["groups"]) > 1, len({result["rule"] for _, result in found}) > 1
    titles = []
    for group, result in found:
        parts = {group["title"]: titled, result["rule"]: ruled, result["known"]: len(known) > 1}
        titles.append(" · ".join(part for part, shown in parts.items() if shown) or result["rule"])
    return [(title, result) for title, (_, result) in zip(titles, found, strict=True)]


# -- over the stream


def seen(summary: Summary, known: Sequence[tuple[str, str]]) -> Picture | None:
    """The mean score over the tasks seen, after each task; the band is a standard deviation over seeds."""
    lines: list[Series] = [
        (title, [value["mean"] for value in result["seen"]], [value["sd"] for value in result["seen"]])
        for title, result in own(summary, known)
        if any(value["mean"] is not None for value in result["seen"])
    ]
    names = _steps(summary)
    if not lines:
        return None
    image = _lines(lines[:DRAWN], names, "after learning", "mean score on tasks seen, %")
    return Picture(f"Mean score on the tasks seen{_in(known)}{_left_out(lines)}", image, *_columns(lines, names))


def tasks(result: Mapping[str, Any], title: str) -> Picture | None:
    """The score on each task over the stream, from where it was learned."""
    names, matrix = result["tasks"], result["matrix"]
    lines: list[Series] = []
    for j, name in enumerate(names):
        values = [row[j] if i >= j else None for i, row in enumerate(matrix)]
        if any(value is not None for value in values):
            lines.append((name, values, []))
    if len({i for _, values, _ in lines for i, value in enumerate(values) if value is not None}) < 2:
        return None  # measured once only
    image = _lines(lines[:DRAWN], names, "after learning", "score on the task, %")
    return Picture(f"{title}{_left_out(lines)}", image, *_columns(lines, names))


def losses(summary: Summary) -> Picture | None:
    """The training loss, task by task, each from its first step to its last."""
    runs = [run for run in summary["runs"] if run["losses"]]
    if not runs:
        return None
    rows = [
        [run["title"], curve["task"], step, loss]
        for run in runs
        for curve in run["losses"]
        for step, loss in zip(curve["steps"], curve["loss"], strict=True)
    ]
    title = f"Training loss{_left_out(runs)}"
    return Picture(title, _draw_losses(runs[:DRAWN]), ["run", "task", "step", "loss"], rows)


@svg
def _draw_losses(runs: Sequence[Mapping[str, Any]]) -> Figure:
    names = list(dict.fromkeys(curve["task"] for run in runs for curve in run["losses"]))
    figure, axes = empty(len(runs))
    for i, run in enumerate(runs):
        for number, curve in enumerate(run["losses"]):
            x = names.index(curve["task"]) - 0.46 + 0.92 * np.array(curve["steps"]) / max(curve["steps"])
            label = None if number else shown(run["title"])
            axes.plot(x, curve["loss"], LINES[i // len(COLOURS) % 4], color=colour_of(i), lw=1.2, label=label)
    name_tasks(axes, names)
    axes.set(xlabel="while learning", ylabel="training loss", ylim=(0, None))
    for border in range(1, min(len(names), 60)):
        axes.axvline(border - 0.5, color=LINE, lw=1)
    return with_legend(figure)


# -- stability and plasticity


def plane(summary: Summary, known: Sequence[tuple[str, str]]) -> Picture | None:
    """New-task accuracy to the right, forgetting upwards: below to the right both are good."""
    points = []
    for title, result in own(summary, known):
        learned, forgotten = result["learned"], result["metrics"].get("forgetting")
        if forgotten and None not in (learned["mean"], forgotten["mean"]):
            points.append((title, learned["mean"], learned["sd"], forgotten["mean"], forgotten["sd"], learned["n"]))
    if not points:
        return None
    header = ["run", "new-task accuracy", "± sd", "forgetting", "± sd", "seeds"]
    rows, title = points, f"Stability and plasticity{_in(known)}"
    if len(points) > DRAWN:
        rows = [(f"{i}  {point[0]}", *point[1:]) for i, point in enumerate(points, 1)]
        title += " (numbers are those of the table)"
    return Picture(title, _draw_plane(points), header, rows)


@svg
def _draw_plane(points: Sequence[Sequence[Any]]) -> Figure:
    numbered = len(points) > DRAWN
    figure, axes = empty(0 if numbered else len(points))
    for i, (title, x, dx, y, dy, _) in enumerate(points):
        colour, label = colour_of(i), None if numbered else shown(title)
        axes.errorbar(x, y, yerr=dy or 0, xerr=dx or 0, color=colour, lw=1, capsize=2, zorder=1)
        axes.plot(x, y, "." if numbered else MARKERS[i % len(MARKERS)], ms=8, ls="", color=colour, label=label)
        if numbered:
            axes.annotate(str(i + 1), (x, y), (3, 3), textcoords="offset points", color=INK)
    axes.grid(axis="x")
    axes.margins(0.12)
    axes.set(xlabel="new-task accuracy (plasticity), %", ylabel="forgetting, points")
    axes.xaxis.set_major_formatter(PERCENT)
    axes.yaxis.set_major_formatter(PERCENT)
    return with_legend(figure)


def forgetting(summary: Summary) -> Picture | None:
    """Bars of forgetting: for each task but the last the best score before the end less the last score.

    Of more than three groups of runs a bar for each, the mean over its tasks.
    """
    if len(summary["runs"]) <= 3:
        pairs = [(run, result) for run in summary["runs"] for result in run["results"] if result["rule"] == run["rule"]]
        several = len(summary["runs"]) > 1
        bars = [
            (f"{run['title']} · {result['known']}" if several else result["known"],
             dict(zip(result["tasks"], result["forgetting"], strict=False)))
            for run, result in pairs
        ]  # fmt: skip
    else:
        bars = [
            (
                way[1],
                {
                    title: (result["metrics"].get("forgetting") or {}).get("mean")
                    for title, result in own(summary, [way])
                },
            )
            for way in ways(summary)
        ]
    bars = [(label, values) for label, values in bars if any(value is not None for value in values.values())]
    if not bars:
        return None
    names = list(dict.fromkeys(name for _, values in bars for name in values))
    table = [[name, *(values.get(name) for _, values in bars)] for name in names]
    image = _bars([(label, [values.get(name) for name in names]) for label, values in bars], names)
    return Picture("Forgetting, points", image, ["name", *(label for label, _ in bars)], table)


# -- search and cost


def search(summary: Summary) -> Picture | None:
    """The validation score over the scale λ; the filled point is the one that was taken."""
    runs = [run for run in summary["runs"] if run["search"]]
    if not runs:
        return None
    rows = [
        [run["title"], scale, score, "taken" if scale == run["search"]["chosen"] else ""]
        for run in runs
        for scale, score in zip(run["search"]["scales"], run["search"]["scores"], strict=True)
    ]
    header = ["run", "scale λ", "mean validation score", ""]
    return Picture(f"Search of λ{_left_out(runs)}", _draw_search(runs[:DRAWN]), header, rows)


@svg
def _draw_search(runs: Sequence[Mapping[str, Any]]) -> Figure:
    figure, axes = empty(len(runs))
    for i, run in enumerate(runs):
        scales, scores = run["search"]["scales"], _gaps(run["search"]["scores"])
        axes.plot(scales, scores, "-o", color=colour_of(i), mfc="none", label=shown(run["title"]))
        if run["search"]["chosen"] in scales:
            place = scales.index(run["search"]["chosen"])
            axes.plot(scales[place], scores[place], "o", color=colour_of(i), ms=9)
    axes.set(xlabel="scale λ", ylabel="mean validation score, %")
    axes.yaxis.set_major_formatter(PERCENT)
    return with_legend(figure)


COSTS = {
    "seconds": ("learning, seconds", 1.0),
    "trained": ("trained, thousands", 1e3),
    "bytes": ("stored, MB", 1e6),
    "state_bytes": ("remembered, MB", 1e6),
}


def cost(summary: Summary) -> Picture | None:
    """What each run took: time, the parameters trained for a task, bytes on disk, and those its method remembers."""
    known = {name: about for name, about in COSTS.items() if any(run["cost"][name] for run in summary["runs"])}
    if not known:
        return None
    rows = [[run["title"], *(run["cost"][name] for name in known)] for run in summary["runs"]]
    header = ["run", *(name.replace("_", " ") for name in known)]
    return Picture("Time, parameters and bytes", _draw_cost(rows[:40], list(known.values())), header, rows)


@svg
def _draw_cost(rows: Sequence[Sequence[Any]], about: Sequence[tuple[str, float]]) -> Figure:
    figure = Figure(figsize=(1.3 + 1.75 * len(about), 0.75 + 0.2 * len(rows)), layout="constrained")
    for i, (axes, (title, unit)) in enumerate(zip(np.atleast_1d(figure.subplots(1, len(about))), about, strict=True)):
        values = [(row[i + 1] or 0) / unit for row in rows]
        axes.barh(range(len(rows)), values, 0.7, color=colour_of(i))
        axes.set(ylim=(len(rows) - 0.5, -0.5), title=title)
        axes.set_yticks(range(len(rows)), [shown(row[0], 34) for row in rows] if i == 0 else [""] * len(rows))
        axes.tick_params(length=0)
        axes.locator_params(axis="x", nbins=3)
        axes.grid(axis="x")
    return figure


# -- parts


@svg
def _lines(lines: Sequence[Series], names: Sequence[str], below: str, beside: str) -> Figure:
    figure, axes = empty(len(lines))
    for i, (title, means, spreads) in enumerate(lines):
        line, marker = LINES[i // len(COLOURS) % 4], MARKERS[i % len(MARKERS)] if len(means) <= 40 else ""
        axes.plot(_gaps(means), line, marker=marker, ms=4.5, color=colour_of(i), label=shown(title))
        if any(spread is not None for spread in spreads):
            middle, half = np.array(_gaps(means)), np.nan_to_num(np.array(_gaps(spreads)))
            axes.fill_between(range(len(middle)), middle - half, middle + half, color=colour_of(i), alpha=0.15, lw=0)
    name_tasks(axes, names)
    axes.set(xlabel=below, ylabel=beside)
    axes.yaxis.set_major_formatter(PERCENT)
    return with_legend(figure)


@svg
def _bars(bars: Sequence[tuple[str, Sequence[float | None]]], names: Sequence[str]) -> Figure:
    """Groups of bars that lie, one group for each name."""
    figure = Figure(figsize=(WIDTH, 0.9 + 0.19 * len(bars) + 0.3 * min(len(names), 60)), layout="constrained")
    axes = figure.subplots()
    width = 0.84 / len(bars)
    for i, (label, values) in enumerate(bars):
        y = np.arange(len(names)) - 0.42 + (i + 0.5) * width
        axes.barh(y, _gaps(values), 0.9 * width, color=colour_of(i), label=shown(label))
    axes.axvline(0, color=SOFT, lw=0.8)
    axes.grid(axis="x")
    axes.set(ylim=(len(names) - 0.5, -0.5))
    step = -(-len(names) // 60)
    axes.set_yticks(range(0, len(names), step), [shown(name, 34) for name in names[::step]])
    axes.tick_params(length=0)
    axes.xaxis.set_major_formatter(PERCENT)
    return with_legend(figure)


def _columns(lines: Sequence[Series], names: Sequence[str]) -> tuple[list[str], list[list[Any]]]:
    """The numbers of lines: a column for each, and one for its spread over seeds if there is any."""
    header: list[str] = ["task"]
    columns: list[list[Any]] = [list(names)]
    for title, means, spreads in lines:
        for label, values in ((title, means), (f"{title}, ± sd", spreads)):
            if any(value is not None for value in values):
                header.append(label)
                columns.append([values[i] if i < len(values) else None for i in range(len(names))])
    return header, [list(row) for row in zip(*columns, strict=True)]


def _in(known: Sequence[tuple[str, str]]) -> str:
    """The way to know the task, where it is one."""
    return f" · {known[0][1]}" if len(known) == 1 else ""


def _left_out(lines: Sequence[Any]) -> str:
    return f" (drawn: {DRAWN} of {len(lines)})" if len(lines) > DRAWN else ""


def _steps(summary: Summary) -> list[str]:
    """The tasks in their order, if it is that of all runs; else their numbers."""
    orders = sorted({tuple(task["name"] for task in run["tasks"]) for run in summary["runs"]}, key=len)
    longest = orders[-1]
    same = all(order == longest[: len(order)] for order in orders)
    return list(longest) if same else [f"task {i + 1}" for i in range(len(longest))]


def _gaps(values: Sequence[float | None]) -> list[float]:
    return [float("nan") if value is None else value for value in values]
