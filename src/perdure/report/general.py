"""The cost of a stream elsewhere: the model's loss on plain text, and how far it has moved."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from matplotlib.figure import Figure

from perdure.evaluation.metrics import GENERAL
from perdure.report.axes import empty, gaps, left_out, name_tasks, shown, with_legend
from perdure.report.folder import Files
from perdure.report.markdown import number
from perdure.report.picture import Cell, Picture, Section
from perdure.report.plain import Record, Summary
from perdure.report.series import DRAWN, Look, Looks
from perdure.report.svg import SOFT, svg

TITLE = "What the stream costs the model elsewhere"
NOTE = (
    "Rise: the cross-entropy on plain text that no task teaches, less that before the first task, "
    "in nats per token; above 0 something was lost. KL: how far the model has moved on the prompts "
    "of the task just learned, KL(pre-trained ‖ now) in nats per place where an answer is due."
)
BEFORE = "(before)"
"""The name of the step before the first task."""


def summarise(files: Files) -> list[Record]:
    """Return, for each rule, the values before the first task (if known) and after each one.

    `cross_entropy` and `rise` begin with the step before the first task, `divergence` after it.
    """
    count = len(files.tasks)
    values: dict[tuple[str, str, int], float] = {}
    start = None
    rules: dict[str, None] = {}
    for row in files.scores:
        if not row["task"].startswith(GENERAL) or not math.isfinite(row["value"]):
            continue
        # Before the first task all rules make the same model, and only one is measured.
        if row["step"] == 0:
            start = row["value"]
            continue
        rules[row["rule"]] = None
        values[row["rule"], row["metric"], row["step"]] = row["value"]
    found = []
    for rule in rules:
        losses = [start]
        divergences = []
        for step in range(1, count + 1):
            losses.append(values.get((rule, "cross_entropy", step)))
            divergences.append(values.get((rule, "divergence", step)))
        found.append(
            {
                "rule": rule,
                "tasks": [task["name"] for task in files.tasks],
                "cross_entropy": losses,
                "rise": [_less(loss, start) for loss in losses],
                "divergence": divergences,
            }
        )
    return found


def _less(value: float | None, start: float | None) -> float | None:
    return None if value is None or start is None else value - start


def sentences(summary: Summary) -> list[str]:
    """Say of each run, by its own rule, what its stream has cost the model elsewhere."""
    said = []
    several = len(summary["runs"]) > 1
    for run in summary["runs"]:
        for values in run.get("general", []):
            first, last = values["cross_entropy"][0], values["cross_entropy"][-1]
            if values["rule"] != run["rule"] or last is None:
                continue
            text = f"Elsewhere: cross-entropy on plain text {number(last)} nats per token"
            if first is not None:
                rise = number(values["rise"][-1], signed=True)
                text += f", {rise} since before the first task"
            apart = values["divergence"][-1]
            if apart is not None:
                text += f"; KL on prompts of {values['tasks'][-1]} {number(apart)}"
            said.append(f"{run['title']}. {text}." if several else f"{text}.")
    return said


@dataclass(frozen=True)
class Curve:
    """Values over the steps of a stream, for one run and rule."""

    title: str
    look: Look
    values: Sequence[float | None]


def section(summary: Summary) -> Section:
    """Draw the rise of the loss on plain text, and the distance from the pre-trained model."""
    rises = _picture(summary, "rise", "Rise of cross-entropy on plain text, nats per token")
    apart = _picture(summary, "divergence", "KL on the new task's prompts, nats per place")
    return Section(TITLE, NOTE, [picture for picture in (rises, apart) if picture])


def _picture(summary: Summary, key: str, caption: str) -> Picture | None:
    curves = _curves(summary, key)
    if not curves:
        return None
    longest: list[str] = []
    for run in summary["runs"]:
        names = [task["name"] for task in run["tasks"]]
        longest = max(longest, names, key=len)
    names = [BEFORE, *longest] if key == "rise" else longest
    rows: list[list[Cell]] = []
    for step, name in enumerate(names):
        cells = [curve.values[step] if step < len(curve.values) else None for curve in curves]
        rows.append([name, *cells])
    return Picture(
        caption=f"{caption}{left_out(curves)}",
        svg=_drawn(curves[:DRAWN], names, caption.split(" ")[0]),
        header=["after learning", *(curve.title for curve in curves)],
        rows=rows,
    )


def _curves(summary: Summary, key: str) -> list[Curve]:
    looks = Looks(summary)
    curves = []
    for place, run in enumerate(summary["runs"]):
        of_run: Sequence[Mapping[str, list[float | None]]] = run.get("general", [])
        for values in of_run:
            if all(value is None for value in values[key]):
                continue
            words = [run["title"]] if looks.several else []
            if len(of_run) > 1 or not words:
                words.append(str(values["rule"]))
            look = looks.of_run(place, str(values["rule"]))
            curves.append(Curve(" · ".join(words), look, values[key]))
    return curves


@svg
def _drawn(curves: Sequence[Curve], names: Sequence[str], label: str) -> Figure:
    figure, axes = empty(len(curves))
    for curve in curves:
        axes.plot(
            gaps(curve.values),
            curve.look.line,
            marker=curve.look.marker,
            color=curve.look.colour,
            label=shown(curve.title),
        )
    axes.axhline(0, lw=0.8, color=SOFT)  # above it something was lost
    name_tasks(axes, names)
    axes.set(xlabel="after learning", ylabel=f"{label}, nats")
    return with_legend(figure)
