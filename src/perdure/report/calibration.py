"""The calibration of a language model's closed answers: its confidence compared with accuracy."""

import numpy as np

from perdure.report.heat_map import heat
from perdure.report.markdown import percent
from perdure.report.picture import Picture, Section
from perdure.report.plain import Record, Summary
from perdure.report.series import ways

TITLE = "Calibration of closed answers"
NOTE = (
    "Expected calibration error in points: the mean distance between confidence and accuracy, over "
    "15 bins of confidence. Row: after learning this task. Column: the answers to this task."
)
WORST = 0.5
"""The error with the lightest colour, that of fully confident answers half of which are wrong."""


def section(summary: Summary) -> Section:
    """Draw the calibration error on every task after each task, for the rule of each run."""
    several = len(summary["runs"]) > 1
    pictures = []
    for run in summary["runs"]:
        for result in run["results"]:
            if result["rule"] == run["rule"] and result["calibration"]:
                title = f"{run['title']} · {result['known']}" if several else result["known"]
                pictures.append(_picture(result, title))
    return Section(TITLE, NOTE, pictures, folded=several)


def _picture(result: Record, title: str) -> Picture:
    names = result["tasks"]
    values = np.array(result["calibration"], dtype=float)
    # Tasks that are answered with free text have no choices, and no confidence in one.
    closed = [column for column in range(len(names)) if not np.isnan(values[:, column]).all()]
    columns = [names[column] for column in closed]
    rows = []
    for name, row in zip(names, result["calibration"], strict=True):
        rows.append([name, *(row[column] for column in closed)])
    return Picture(
        caption=title,
        svg=heat(values[:, closed], names, columns, limits=(0.0, WORST)),
        header=["after learning", *columns],
        rows=rows,
    )


def sentences(summary: Summary) -> list[str]:
    """Return a sentence for each run with its calibration error on each task after the last task.

    The errors are for the run's own rule and the main `task_id`.
    """
    said = []
    first = [key for key, _ in ways(summary)][:1]
    for run in summary["runs"]:
        for result in run["results"]:
            own = result["rule"] == run["rule"] and [result["task_id"]] == first
            if not own or not result["calibration"]:
                continue
            pairs = zip(result["tasks"], result["calibration"][-1], strict=True)
            errors = [f"{task} {percent(error)}" for task, error in pairs if error is not None]
            text = f"Calibration error, {result['known']}, points: {', '.join(errors)}."
            said.append(f"{run['title']}. {text}" if len(summary["runs"]) > 1 else text)
    return said
