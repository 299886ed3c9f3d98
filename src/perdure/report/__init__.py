"""Reports on runs, without using torch: run folders → one dict → figures → one HTML page.

folder.py                  the files of a run folder, as far as they can be read
summary.py, seeds.py       folders → dict
sweeps.py                  the runs of a sweep, and its failed trials
sentence.py                a one-sentence description of a run
plain.py                   values that are safe to show anywhere
markdown.py, latex.py      dict → text
terminal.py                dict → terminal; the tables are in terminal_table.py
figures.py, costs.py       dict → figures with their numbers (picture.py)
classes.py, heat_map.py    dict → figures of single classes, and of matrices
calibration.py             dict → figures of the calibration of answers
curves.py                  curves over the steps of a stream, as a figure
general.py                 dict → figures of the loss on plain text and of tasks never trained
unknown.py                 dict → figures of inputs that belong to no task
gate.py                    dict → yes or no, for a pipeline
series.py, axes.py, svg.py the style of all figures: a colour has one meaning across the page
diagnostics/               how diagnostics are shown, one per file
diagnostics_page.py        results of `perdure diagnose` → sections of the page
diagnostics_terminal.py    results of `perdure diagnose` → terminal
html.py                    dict → page
"""

import json
from collections.abc import Callable

from perdure.report.html import report, to_html
from perdure.report.latex import to_latex
from perdure.report.markdown import to_markdown
from perdure.report.plain import Summary

__all__ = ["FORMATS", "report"]


def _to_json(summary: Summary) -> str:
    # `plain` has replaced the values that JSON does not support, so a nan here is a bug.
    text = json.dumps(
        summary,
        indent=2,
        ensure_ascii=False,
        allow_nan=False,
    )
    return text + "\n"


FORMATS: dict[str, Callable[[Summary], str]] = {
    "html": to_html,
    "markdown": to_markdown,
    "latex": to_latex,
    "json": _to_json,
}
"""The functions that turn the dict of a report into text, by format."""
