"""How figures look, and how they become SVG text. matplotlib's global state is neither read nor changed."""

import functools
import io
import re
import warnings
from collections.abc import Callable
from typing import ParamSpec

import matplotlib.style
from matplotlib.figure import Figure

P = ParamSpec("P")
FONT = "system-ui, -apple-system, Segoe UI, Roboto, Liberation Sans, sans-serif"
SMALLEST = 0.7  # of its size: a figure that would be narrower scrolls, so that its text can be read
INK, SOFT, LINE = "#1d2127", "#5b6470", "#dfe3e8"
THEME = {INK: f"var(--ink, {INK})", SOFT: f"var(--soft, {SOFT})", LINE: f"var(--line, {LINE})"}
"""The page's colours in light and dark; those after the comma where a figure stands alone."""
STYLE = {
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": SOFT,
    "axes.labelcolor": INK,
    "axes.axisbelow": True,
    "grid.color": LINE,
    "text.color": INK,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "legend.frameon": False,
    "text.parse_math": False,  # a `$` in a name is a `$`
    "svg.fonttype": "none",  # text stays text: it can be searched, and the reader's fonts have its letters
    "svg.hashsalt": "perdure",  # the same dict gives the same bytes
}
NONE = {"Date": None, "Creator": None, "Format": None, "Type": None}


def svg(draw: Callable[P, Figure]) -> Callable[P, str]:
    """Let a function that draws a figure return it as SVG."""

    @functools.wraps(draw)
    def drawn(*args: P.args, **kwargs: P.kwargs) -> str:
        with matplotlib.style.context(["default", STYLE]), warnings.catch_warnings():
            # the page is shown in the reader's fonts, so it does not matter what ours lack
            warnings.filterwarnings("ignore", "Glyph .* missing from font")
            figure, file = draw(*args, **kwargs), io.StringIO()
            figure.savefig(file, format="svg", metadata=NONE, transparent=True)
        text = file.getvalue()[
            file.getvalue().index("<svg") :
        ]  # the lines before it have no place in HTML
        points = float(re.search(r'width="([\d.]+)pt"', text)[1])  # pyright: ignore
        text = text.replace("<svg", f'<svg style="min-width: {SMALLEST * points * 4 / 3:.0f}px"', 1)
        for colour, themed in THEME.items():
            text = text.replace(f": {colour}", f": {themed}")
        return text

    return drawn


def short(name: str, length: int = 28) -> str:
    """A name that fits into a figure."""
    name = " ".join(name.split())
    return name if len(name) <= length else name[: length - 1] + "…"
