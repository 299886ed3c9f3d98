"""Run folders → one plain dict → figures → one HTML page. Reads files only, and never needs torch.

folder.py                              a run folder's files, as far as they can be read
summary.py, seeds.py                   folders → dict, of values that may be shown anywhere (plain.py)
markdown.py, latex.py, terminal.py     dict → text
figures.py, costs.py, classes.py       dict → figures with their numbers (picture.py), some as heat maps (heat_map.py)
series.py, axes.py, svg.py             how all figures look: a colour has one meaning on the whole page
diagnostics/                           how each diagnostic is shown: one file is one of them
diagnostics_page.py                    what `perdure diagnose` found → sections of the page
diagnostics_terminal.py                the same → text
html.py                                dict → page
"""

import json
from collections.abc import Callable, Mapping
from typing import Any

from perdure.report.html import report, to_html
from perdure.report.latex import to_latex
from perdure.report.markdown import to_markdown

__all__ = ["FORMATS", "report"]

FORMATS: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "html": to_html,
    "markdown": to_markdown,
    "latex": to_latex,
    "json": lambda summary: (
        json.dumps(summary, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    ),
}
"""How a report's dict becomes text."""
