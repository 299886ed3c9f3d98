"""Figures of what a run took, and of how its scale was searched."""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from perdure.report.axes import PERCENT, empty, gaps, left_out, shown, with_legend
from perdure.report.picture import Cell, Picture
from perdure.report.series import DRAWN, Look, Looks, Summary
from perdure.report.svg import SOFT, svg

ROWS = 40
"""The most runs whose cost is drawn."""


def search(summary: Summary) -> Picture | None:
    """Draw the validation score over the scale λ; the filled point is the one that was taken."""
    looks = Looks(summary)
    searched = []
    rows: list[list[Cell]] = []
    for number, run in enumerate(summary["runs"]):
        if not run["search"]:
            continue
        searched.append((run["title"], looks.of_run(number, run["rule"]), run["search"]))
        for scale, score in zip(run["search"]["scales"], run["search"]["scores"], strict=True):
            taken = "taken" if scale == run["search"]["chosen"] else ""
            rows.append([run["title"], scale, score, taken])
    if not searched:
        return None
    header = ["run", "scale λ", "mean validation score", ""]
    return Picture(f"Search of λ{left_out(searched)}", _draw_search(searched[:DRAWN]), header, rows)


@svg
def _draw_search(searched: Sequence[tuple[str, Look, Mapping[str, Any]]]) -> Figure:
    figure, axes = empty(len(searched))
    for title, look, search in searched:
        scales, scores = search["scales"], gaps(search["scores"])
        axes.plot(
            scales, scores, look.line, marker="o", color=look.colour, mfc="none", label=shown(title)
        )
        if search["chosen"] in scales:
            taken = scales.index(search["chosen"])
            axes.plot(scales[taken], scores[taken], "o", color=look.colour, ms=9)
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
    """Draw what each run took: time, the parameters trained for a task, bytes on disk, and bytes remembered."""
    known = [name for name in COSTS if any(run["cost"][name] for run in summary["runs"])]
    if not known or len(summary["runs"]) < 2:  # what one run took stands in the table of its tasks
        return None
    rows: list[list[Cell]] = []
    for run in summary["runs"]:
        rows.append([run["title"], *(run["cost"][name] for name in known)])
    header = ["run", *(name.replace("_", " ") for name in known)]
    image = _draw_cost(rows[:ROWS], [COSTS[name] for name in known])
    return Picture("Time, parameters and bytes", image, header, rows)


@svg
def _draw_cost(rows: Sequence[Sequence[Any]], about: Sequence[tuple[str, float]]) -> Figure:
    size = (1.3 + 1.75 * len(about), 0.75 + 0.2 * len(rows))
    figure = Figure(figsize=size, layout="constrained")
    panels = figure.subplots(1, len(about), squeeze=False)[0]
    for column, (axes, (title, unit)) in enumerate(zip(panels, about, strict=True), start=1):
        values = [(row[column] or 0) / unit for row in rows]
        axes.barh(range(len(rows)), values, 0.7, color=SOFT)
        axes.set(ylim=(len(rows) - 0.5, -0.5), title=title)
        names = [shown(row[0], 34) if column == 1 else "" for row in rows]
        axes.set_yticks(range(len(rows)), names)
        axes.tick_params(length=0)
        axes.locator_params(axis="x", nbins=3)
        axes.grid(axis="x")
    return figure
