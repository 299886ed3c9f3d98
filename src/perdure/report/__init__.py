"""Run folders → one plain dict → figures → one HTML page. Reads files only, and never needs torch.

folder.py     a run folder's files, read and checked
summary.py    folders → dict (as JSON it is `json.dumps` of it)
markdown.py   dict → Markdown
figures.py    dict → SVG
html.py       dict → page
"""

from perdure.report.html import write_report

__all__ = ["write_report"]
