"""Curves of values over the steps of a stream, several in one picture."""

from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.figure import Figure

from perdure.report.axes import PERCENT, empty, gaps, left_out, name_tasks, shown, with_legend
from perdure.report.picture import Cell, Picture
from perdure.report.plain import Summary
from perdure.report.series import DRAWN, Look
from perdure.report.svg import SOFT, svg

BEFORE = "(before)"
"""The name of the step before the first task."""


@dataclass(frozen=True)
class Curve:
    """The values of a measure for one run and one rule, such as one after each step."""

    title: str
    look: Look
    values: Sequence[float | None]

    @property
    def known(self) -> list[float]:
        """The values without those that were not measured."""
        return [value for value in self.values if value is not None]


def over_steps(
    summary: Summary,
    curves: Sequence[Curve],
    caption: str,
    label: str,
    *,
    before: bool = False,
    percents: bool = False,
) -> Picture:
    """Draw curves over the steps of the longest stream.

    Parameters
    ----------
    label
        The label of the vertical axis.
    before
        Whether the curves begin before the first task.
    percents
        Whether the values are shares; if not, a line is drawn at 0.
    """
    longest: list[str] = []
    for run in summary["runs"]:
        names = [task["name"] for task in run["tasks"]]
        longest = max(longest, names, key=len)
    names = [BEFORE, *longest] if before else longest
    rows: list[list[Cell]] = []
    for step, name in enumerate(names):
        cells = [curve.values[step] if step < len(curve.values) else None for curve in curves]
        rows.append([name, *cells])
    return Picture(
        caption=f"{caption}{left_out(curves)}",
        svg=_drawn(curves[:DRAWN], names, label, percents=percents),
        header=["after learning", *(curve.title for curve in curves)],
        rows=rows,
    )


@svg
def _drawn(curves: Sequence[Curve], names: Sequence[str], label: str, *, percents: bool) -> Figure:
    figure, axes = empty(len(curves))
    for curve in curves:
        axes.plot(
            gaps(curve.values),
            curve.look.line,
            marker=curve.look.marker,
            color=curve.look.colour,
            label=shown(curve.title),
        )
    if percents:
        axes.yaxis.set_major_formatter(PERCENT)
    else:
        axes.axhline(0, lw=0.8, color=SOFT)  # above it something was lost
    name_tasks(axes, names)
    axes.set(xlabel="after learning", ylabel=label)
    return with_legend(figure)
