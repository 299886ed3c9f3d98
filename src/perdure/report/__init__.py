"""Run folders → one plain dict → figures → one HTML page. Reads files only, and never needs torch.

folder.py                  a run folder's files, as far as they can be read
summary.py, seeds.py       folders → dict
sentence.py                what was run, in one sentence
plain.py                   its values, safe to show anywhere
markdown.py, latex.py      dict → text
terminal.py                dict → terminal; its tables are in terminal_table.py
figures.py, costs.py       dict → figures with their numbers (picture.py)
classes.py, heat_map.py    the same for single classes and for matrices
calibration.py             the same for the confidence of answers
general.py                 the same for what no task teaches
gate.py                    dict → yes or no, for a pipeline
series.py, axes.py, svg.py the looks that all figures share: a colour has one meaning on the page
diagnostics/               how each diagnostic is shown: one file is one of them
diagnostics_page.py        results of `perdure diagnose` → sections of the page
diagnostics_terminal.py    the same → terminal
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
    # `plain` has replaced what JSON does not know, so a nan here is a fault.
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
"""The functions that turn a report's dict into text."""
