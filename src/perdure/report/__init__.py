"""Run folders → one plain dict → figures → one HTML page. Reads files only, and never needs torch.

folder.py                   a run folder's files, read and checked
summary.py                  folders → dict (as JSON: `json.dumps` of it)
markdown.py, terminal.py    dict → text
figures.py, heat_map.py     dict → SVG; svg.py says how they look
html.py                     dict → page
diagnostics.py              what `perdure diagnose` found → sections, by diagnostic_figures.py; to text by
                            diagnostics_terminal.py
"""

from perdure.report.html import report

__all__ = ["report"]
