"""Side effects of learning a stream: the loss on plain text, and the scores of other tasks."""

import math
from collections.abc import Sequence
from dataclasses import replace

from perdure.evaluation.metrics import GENERAL
from perdure.report.curves import Curve, over_steps
from perdure.report.folder import Files
from perdure.report.markdown import number, percent
from perdure.report.picture import Section
from perdure.report.plain import Record, Summary
from perdure.report.series import LINES, MARKERS, Looks

TITLE = "Side effects on plain text and other tasks"
NOTE = (
    "Rise: the cross-entropy on plain text that no task teaches, minus its value before the first "
    "task, in nats per token; above 0, something was lost. KL: how far the model has moved on the "
    "prompts of the task just learned, KL(pre-trained ‖ now) in nats per answer position. Never "
    "trained: tasks that are only measured, each with its own score."
)
MEASURES = ("cross_entropy", "divergence")
"""The metrics that are not the score of a task."""


def summarise(files: Files) -> list[Record]:
    """Return, for each rule, the measurements before the first task (if known) and after each task.

    `cross_entropy`, `rise` and the scores of the tasks that are `never` trained start
    with the step before the first task. `divergence` starts with the step after it.
    """
    count = len(files.tasks)
    values: dict[tuple[str, str, int], float] = {}
    titles: dict[str, None] = {}
    rules: dict[str, None] = {}
    for row in files.scores:
        if not row["task"].startswith(GENERAL) or not math.isfinite(row["value"]):
            continue
        name = row["metric"]
        if name not in MEASURES:
            name = f"{row['task'].removeprefix(GENERAL)} ({name})"
            titles[name] = None
        # Before the first task, all rules produce the same model, which is measured only once.
        rule = row["rule"] if row["step"] else ""
        values[rule, name, row["step"]] = row["value"]
        if rule:
            rules[rule] = None

    def over_steps(rule: str, name: str) -> list[float | None]:
        later = [values.get((rule, name, step)) for step in range(1, count + 1)]
        return [values.get(("", name, 0)), *later]

    measured = []
    for rule in rules:
        losses = over_steps(rule, "cross_entropy")
        measured.append(
            {
                "rule": rule,
                "tasks": [task["name"] for task in files.tasks],
                "cross_entropy": losses,
                "rise": [_less(loss, losses[0]) for loss in losses],
                "divergence": over_steps(rule, "divergence")[1:],
                "never": {title: over_steps(rule, title) for title in titles},
            }
        )
    return measured


def _less(value: float | None, start: float | None) -> float | None:
    return None if value is None or start is None else value - start


def sentences(summary: Summary) -> list[str]:
    """Return a sentence for each run on its loss on plain text and on tasks never trained.

    The numbers are for the run's own rule.
    """
    said = []
    several = len(summary["runs"]) > 1
    for run in summary["runs"]:
        for values in run.get("general", []):
            first, last = values["cross_entropy"][0], values["cross_entropy"][-1]
            if values["rule"] != run["rule"] or last is None:
                continue
            text = f"Side effects: cross-entropy on plain text {number(last)} nats per token"
            if first is not None:
                rise = number(values["rise"][-1], signed=True)
                text += f", {rise} since before the first task"
            apart = values["divergence"][-1]
            if apart is not None:
                text += f"; KL on prompts of {values['tasks'][-1]} {number(apart)}"
            for title, scores in values["never"].items():
                text += f"; {title}, never trained, {percent(scores[-1])} %"
                if scores[0] is not None and scores[-1] is not None:
                    text += f" ({percent(scores[-1] - scores[0], signed=True)})"
            said.append(f"{run['title']}. {text}." if several else f"{text}.")
    return said


CAPTIONS = {
    "rise": ("Rise of cross-entropy on plain text, nats per token", "rise, nats"),
    "divergence": ("KL on the new task's prompts, nats per answer position", "KL, nats"),
    "never": ("Tasks that are never trained", "score, %"),
}
"""The caption of each figure, and the label of its axis."""


def section(summary: Summary) -> Section:
    """Draw the loss on plain text, the KL divergence, and the scores of tasks never trained."""
    pictures = []
    for key, (caption, label) in CAPTIONS.items():
        curves = _curves(summary, key)
        if curves:
            before, percents = key != "divergence", key == "never"
            pictures.append(
                over_steps(summary, curves, caption, label, before=before, percents=percents)
            )
    return Section(TITLE, NOTE, pictures)


def _curves(summary: Summary, key: str) -> list[Curve]:
    looks = Looks(summary)
    curves = []
    for place, run in enumerate(summary["runs"]):
        of_run: Sequence[Record] = run.get("general", [])
        for values in of_run:
            words = [run["title"]] if looks.several else []
            if len(of_run) > 1 or not words:
                words.append(values["rule"])
            look = looks.of_run(place, values["rule"])
            if key != "never":
                curves.append(Curve(" · ".join(words), look, values[key]))
                continue
            for place_of_task, (title, scores) in enumerate(values["never"].items()):
                # A line and a marker for each task, in the colour of its run and rule.
                line = LINES[place_of_task % len(LINES)]
                marker = MARKERS[place_of_task % len(MARKERS)]
                own = replace(look, line=line, marker=marker)
                curves.append(Curve(" · ".join([*words, title]), own, scores))
    return [curve for curve in curves if curve.known]
