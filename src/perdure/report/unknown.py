"""Inputs that belong to no task: the share that is caught, and how it changes over the stream."""

import math
from collections.abc import Sequence
from dataclasses import replace

from matplotlib.figure import Figure

from perdure.evaluation.metrics import UNKNOWN
from perdure.report.axes import PERCENT, empty, gaps, left_out, shown, with_legend
from perdure.report.curves import Curve, over_steps
from perdure.report.folder import Files
from perdure.report.markdown import percent
from perdure.report.picture import Cell, Picture, Section
from perdure.report.plain import Record, Summary
from perdure.report.series import DRAWN, LINES, MARKERS, Look, Looks
from perdure.report.svg import LINE, SOFT, svg

TITLE = "Inputs that belong to no task"
NOTE = (
    "How well they are told from the test examples of the tasks. AUROC: how often an unknown input "
    "has a higher score than a known one. FPR95: the share of unknown inputs that pass for known "
    "where 95 % of the known ones are kept (the vertical line). The relative distance is the score "
    "of `perdure predict --unknown`."
)
METRICS = ("auroc", "fpr95")
NAMES = {
    "relative": "distance, relative",
    "probability": "1 − highest p(class | x)",
    "mahalanobis": "distance, Mahalanobis",
}
"""The words for each score; the first is that of `perdure predict --unknown`."""
KEPT = 0.95
"""The share of known inputs that are kept where FPR95 is measured."""
LEAST = 0.5
"""The smallest share of known inputs that is drawn; a smaller one would be of no use."""


def summarise(files: Files) -> list[Record]:
    """Return, for each rule, AUROC and FPR95 of each score after each task, and its curve.

    A curve has the shares of unknown inputs that are caught where 0, 1, …, 100 % of the known
    ones are kept, after the last task and by the run's own rule; otherwise it is empty.
    """
    count = len(files.tasks)
    values: dict[tuple[str, str, str, int], float] = {}
    rules: dict[str, None] = {}
    names: dict[str, None] = {}
    for row in files.scores:
        if not row["task"].startswith(UNKNOWN) or not math.isfinite(row["value"]):
            continue
        name = row["task"].removeprefix(UNKNOWN)
        values[row["rule"], name, row["metric"], row["step"]] = row["value"]
        rules[row["rule"]] = None
        names[name] = None
    measured = []
    for rule in rules:
        curves = files.caught if rule == files.combined.get("label") else {}
        scores: Record = {}
        for name in names:
            of_score: Record = {"caught": curves.get(name, [])}
            for metric in METRICS:
                steps = range(1, count + 1)
                of_score[metric] = [values.get((rule, name, metric, step)) for step in steps]
            scores[name] = of_score
        tasks = [task["name"] for task in files.tasks]
        measured.append({"rule": rule, "tasks": tasks, "scores": scores})
    return measured


def sentences(summary: Summary) -> list[str]:
    """Return a sentence for each run with AUROC and FPR95 after the last task, by its own rule."""
    said = []
    for run in summary["runs"]:
        for values in run.get("unknown", []):
            parts = []
            for name, score in values["scores"].items():
                last, passed = score["auroc"][-1], score["fpr95"][-1]
                if last is not None:
                    parts.append(f"{_name(name)} {percent(last)} and {percent(passed)}")
            if values["rule"] != run["rule"] or not parts:
                continue
            text = f"{TITLE}, AUROC and FPR95 in %: {'; '.join(parts)}."
            said.append(f"{run['title']}. {text}" if len(summary["runs"]) > 1 else text)
    return said


def _name(score: str) -> str:
    return NAMES.get(score, score)


def section(summary: Summary) -> Section:
    """Draw the share of unknown inputs that are caught, and AUROC after each task."""
    pictures = []
    curves = _curves(summary, "caught")
    if curves:
        pictures.append(_picture_of_caught(curves))
    # With a single step, the numbers are those of the curve.
    curves = [curve for curve in _curves(summary, "auroc") if len(curve.known) > 1]
    if curves:
        caption = "AUROC of unknown inputs, %"
        pictures.append(over_steps(summary, curves, caption, "AUROC, %", percents=True))
    return Section(TITLE, NOTE, pictures)


def _curves(summary: Summary, key: str) -> list[Curve]:
    """Return a curve for each run, rule and score; with several runs, only of the first score."""
    looks = Looks(summary)
    curves = []
    for place, run in enumerate(summary["runs"]):
        for values in run.get("unknown", []):
            look = looks.of_run(place, values["rule"])
            for number, (name, score) in enumerate(values["scores"].items()):
                if looks.several and number:
                    continue
                words = [run["title"], values["rule"]] if looks.several else [_name(name)]
                if key == "caught":
                    words.append(_last(score))
                curves.append(Curve(" · ".join(words), _look(look, number), score[key]))
    return [curve for curve in curves if curve.known]


def _look(look: Look, number: int) -> Look:
    """Return the style of a score: the first one has that of its run, and others are grey."""
    line = LINES[number % len(LINES)]
    marker = MARKERS[number % len(MARKERS)]
    return replace(look, line=line, marker=marker, colour=SOFT) if number else look


def _last(score: Record) -> str:
    auroc, passed = score["auroc"][-1], score["fpr95"][-1]
    return f"AUROC {percent(auroc)}, FPR95 {percent(passed)}"


def _picture_of_caught(curves: Sequence[Curve]) -> Picture:
    rows: list[list[Cell]] = []
    for share in range(101):
        rows.append([share / 100, *(curve.values[share] for curve in curves)])
    return Picture(
        caption=f"Unknown inputs caught, by the share of known ones kept{left_out(curves)}",
        svg=_drawn_caught(curves[:DRAWN]),
        header=["known kept", *(curve.title for curve in curves)],
        rows=rows,
    )


@svg
def _drawn_caught(curves: Sequence[Curve]) -> Figure:
    figure, axes = empty(max(2, len(curves)))
    for curve in curves:
        kept = [share / 100 for share in range(len(curve.values))]
        axes.plot(
            kept,
            gaps(curve.values),
            curve.look.line,
            color=curve.look.colour,
            label=shown(curve.title),
        )
    axes.axvline(KEPT, lw=1, color=LINE, zorder=0)
    axes.set(
        xlim=(LEAST, 1.005),
        ylim=(0, 1.02),
        xlabel="share of known inputs kept, %",
        ylabel="share of unknown inputs caught, %",
    )
    axes.xaxis.set_major_formatter(PERCENT)
    axes.yaxis.set_major_formatter(PERCENT)
    return with_legend(figure)
