"""How figures look, and how they become SVG text. matplotlib's global state is neither read nor changed."""

import functools
import io
import warnings
from collections.abc import Callable
from typing import ParamSpec

import matplotlib.style
from matplotlib.figure import Figure

P = ParamSpec("P")
STYLE = {
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#888888",
    "axes.labelcolor": "#333333",
    "axes.axisbelow": True,
    "grid.color": "#e5e5e5",
    "text.color": "#222222",
    "xtick.color": "#888888",
    "ytick.color": "#888888",
    "xtick.labelcolor": "#222222",
    "ytick.labelcolor": "#222222",
    "legend.frameon": False,
    "text.parse_math": False,  # a `$` in a name is a `$`
    "svg.fonttype": "none",  # text stays text: it can be searched, and the reader's fonts have its letters
    "svg.hashsalt": "perdure",  # the same dict gives the same bytes
}
NONE = {"Date": None, "Creator": None, "Format": None, "Type": None}


def svg(draw: Callable[P, Figure | None]) -> Callable[P, str | None]:
    """Let a function that draws a figure return it as SVG, or None where there was nothing to draw."""

    @functools.wraps(draw)
    def drawn(*args: P.args, **kwargs: P.kwargs) -> str | None:
        with matplotlib.style.context(["default", STYLE]), warnings.catch_warnings():
            # the page is shown in the reader's fonts, so it does not matter what ours lack
            warnings.filterwarnings("ignore", "Glyph .* missing from font")
            if (figure := draw(*args, **kwargs)) is None:
                return None
            text = io.StringIO()
            tight = None if figure.get_layout_engine() else "tight"
            figure.savefig(text, format="svg", metadata=NONE, bbox_inches=tight, pad_inches=0.1)
        return text.getvalue()[text.getvalue().index("<svg") :]  # the lines before it have no place in HTML

    return drawn


def short(name: str, length: int = 28) -> str:
    """A name that fits into a figure."""
    name = " ".join(name.split())
    return name if len(name) <= length else name[: length - 1] + "…"
