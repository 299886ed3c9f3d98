"""Figures of the costs of runs, and of the search for their scales."""

from collections.abc import Sequence

from matplotlib.figure import Figure

from perdure.report.axes import PERCENT, empty, gaps, left_out, shown, with_legend
from perdure.report.picture import Cell, Picture
from perdure.report.plain import Record, Summary
from perdure.report.series import DRAWN, Look, Looks
from perdure.report.svg import SOFT, svg

ROWS = 40
"""The maximum number of runs whose costs are drawn."""


def search(summary: Summary) -> Picture | None:
    """Draw the validation score against the scale λ; a filled point is the chosen scale.

    Return None if no run has searched for its scale.
    """
    looks = Looks(summary)
    searched = []
    rows: list[list[Cell]] = []
    for number, run in enumerate(summary["runs"]):
        candidates = run["search"]
        if not candidates:
            continue
        title = run["title"]
        look = looks.of_run(number, run["rule"])
        searched.append((title, look, candidates))
        for scale, score in zip(candidates["scales"], candidates["scores"], strict=True):
            taken = "taken" if scale == candidates["chosen"] else ""
            rows.append([title, scale, score, taken])
    if not searched:
        return None
    return Picture(
        caption=f"Search of λ{left_out(searched)}",
        svg=_draw_search(searched[:DRAWN]),
        header=["run", "scale λ", "mean validation score", ""],
        rows=rows,
    )


@svg
def _draw_search(searched: Sequence[tuple[str, Look, Record]]) -> Figure:
    figure, axes = empty(len(searched))
    for title, look, candidates in searched:
        scales = candidates["scales"]
        scores = gaps(candidates["scores"])
        axes.plot(
            scales,
            scores,
            look.line,
            marker="o",
            color=look.colour,
            mfc="none",
            label=shown(title),
        )
        # The rule's scale need not be one of the candidates; then no point is filled.
        if candidates["chosen"] in scales:
            taken = scales.index(candidates["chosen"])
            axes.plot(scales[taken], scores[taken], "o", color=look.colour, ms=9)
    axes.set(xlabel="scale λ", ylabel="mean validation score, %")
    axes.yaxis.set_major_formatter(PERCENT)
    return with_legend(figure)


# The title of each panel, and the unit of its bars.
COSTS = {
    "seconds": ("learning, seconds", 1.0),
    "trained": ("trained, thousands", 1e3),
    "bytes": ("stored, MB", 1e6),
    "state_bytes": ("remembered, MB", 1e6),
    "store_bytes": ("old examples, MB", 1e6),
}


def cost(summary: Summary) -> Picture | None:
    """Draw the costs of each run: seconds, trained parameters, and bytes.

    The bytes are those on disk, those of the method's state, and those of old examples in it.
    Return None for a single run, or if no costs are known.
    """
    runs = summary["runs"]
    # A single run needs no figure: the table of its tasks has these numbers.
    if len(runs) < 2:
        return None
    header = ["run"]
    columns = [[run["title"] for run in runs]]
    panels = []
    for name, (title, unit) in COSTS.items():
        costs = [run["cost"][name] for run in runs]
        if not any(costs):
            continue
        header.append(name.replace("_", " "))
        columns.append(costs)
        drawn = [(cost or 0) / unit for cost in costs[:ROWS]]
        panels.append((title, drawn))
    if not panels:
        return None
    titles = [run["title"] for run in runs[:ROWS]]
    return Picture(
        caption="Time, parameters and bytes",
        svg=_draw_cost(titles, panels),
        header=header,
        rows=[list(row) for row in zip(*columns, strict=True)],
    )


@svg
def _draw_cost(titles: Sequence[str], panels: Sequence[tuple[str, Sequence[float]]]) -> Figure:
    """Draw one panel for each kind of cost, with one bar for each run."""
    count = len(titles)
    # Inches: a column for each panel next to the names, and a line for each run.
    width = 1.3 + 1.75 * len(panels)
    height = 0.75 + 0.2 * count
    figure = Figure(figsize=(width, height), layout="constrained")
    grid = figure.subplots(1, len(panels), squeeze=False)[0]
    labels = [shown(title, 34) for title in titles]
    for axes, (title, values) in zip(grid, panels, strict=True):
        axes.barh(range(count), values, 0.7, color=SOFT)
        # The axis points down, so that the runs are in the order of the table.
        axes.set(ylim=(count - 0.5, -0.5), title=title)
        axes.set_yticks(range(count), labels)
        axes.tick_params(length=0)
        axes.locator_params(axis="x", nbins=3)
        axes.grid(axis="x")
        # Only the first panel names the runs.
        labels = [""] * count
    return figure
