"""The style of figures, and their conversion to SVG text.

matplotlib's global state is neither read nor changed.
"""

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
SMALLEST = 0.7
"""The smallest scale at which text is readable; if there is less room, a figure scrolls."""
INK = "#1d2127"
SOFT = "#5b6470"
LINE = "#dfe3e8"
THEME = {INK: f"var(--ink, {INK})", SOFT: f"var(--soft, {SOFT})", LINE: f"var(--line, {LINE})"}
"""For each colour, the CSS variable with the colour of the page in light or dark mode.

The value after the comma is used if the figure is not on a page.
"""
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
    "text.parse_math": False,  # a `$` in a name is not a formula
    # Text is kept as text, so that it can be searched, and is shown in the reader's fonts.
    "svg.fonttype": "none",
    "svg.hashsalt": "perdure",  # the same dict always produces the same bytes
}
NONE = {"Date": None, "Creator": None, "Format": None, "Type": None}


def svg(draw: Callable[P, Figure]) -> Callable[P, str]:
    """Decorate a function that draws a figure so that it returns SVG text."""

    @functools.wraps(draw)
    def drawn(*args: P.args, **kwargs: P.kwargs) -> str:
        file = io.StringIO()
        with matplotlib.style.context(["default", STYLE]), warnings.catch_warnings():
            # The page is shown in the reader's fonts, so letters missing from ours do not matter.
            warnings.filterwarnings("ignore", "Glyph .* missing from font")
            figure = draw(*args, **kwargs)
            figure.savefig(
                file,
                format="svg",
                metadata=NONE,
                transparent=True,
            )
        text = file.getvalue()
        # The XML declaration before it is not allowed in HTML.
        text = text[text.index("<svg") :]
        width = re.search(r'width="([\d.]+)pt"', text)
        points = float(width[1])  # pyright: ignore
        # A point is 4/3 of a CSS pixel.
        smallest = SMALLEST * points * 4 / 3
        text = text.replace("<svg", f'<svg style="min-width: {smallest:.0f}px"', 1)
        # matplotlib does not support CSS variables, so they replace the colours in its output.
        for colour, themed in THEME.items():
            text = text.replace(f": {colour}", f": {themed}")
        return text

    return drawn


def short(name: str, length: int = 28) -> str:
    """Shorten a name for a figure to one line of at most `length` characters."""
    name = " ".join(name.split())
    if len(name) <= length:
        return name
    return name[: length - 1] + "…"
