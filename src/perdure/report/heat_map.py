"""Numbers in rows and columns as a heat map: SVG written by hand, for a report may hold a hundred of them."""

import base64
import io
import unicodedata
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import matplotlib
import numpy as np
from jaxtyping import Float
from numpy import ndarray
from PIL import Image

from perdure.report.markdown import number
from perdure.report.picture import Picture
from perdure.report.svg import FONT, SMALLEST, short

NUMBERS, CELLS, ROWS = (
    12,
    40,
    60,
)  # up to so many columns hold numbers; up to so many (and rows) are drawn one by one
LETTER = 7.2  # pixels of a letter, nearly always at most


def matrix(result: Mapping[str, Any], limits: tuple[float, float]) -> Picture:
    """The accuracy matrix: after learning the row's task, the score on the column's. Empty rows are left out."""
    measured = [
        i for i, row in enumerate(result["matrix"]) if any(value is not None for value in row)
    ] or [0]
    names = result["tasks"]
    values = np.array([result["matrix"][i] for i in measured], dtype=float)
    image = heat(values, [names[i] for i in measured], names, limits=limits)
    rows = [[names[i], *result["matrix"][i]] for i in measured]
    return Picture(result["name"], image, ["after learning", *names], rows)


def limits(results: Sequence[Mapping[str, Any]]) -> tuple[float, float]:
    """Where the colours of several matrices begin and end: the tenths around their values."""
    values = [
        value
        for result in results
        for row in result["matrix"]
        for value in row
        if value is not None
    ]
    low, high = (
        (np.floor(10 * min(values)) / 10, np.ceil(10 * max(values)) / 10) if values else (0.0, 1.0)
    )
    return float(low), float(max(high, low + 0.1))


def heat(
    values: Float[ndarray, "rows columns"],
    rows: Sequence[str],
    columns: Sequence[str],
    *,
    limits: tuple[float, float],
    colours: str = "viridis",
    scale: float = 100,
    digits: int = 1,
) -> str:
    """A heat map as SVG; nan where there is no number.

    Parameters
    ----------
    limits
        The values of the first and the last colour.
    colours
        A colour map of matplotlib.
    scale, digits
        In cells stand `scale` times the values, rounded to so many digits.
    """
    numbered = len(columns) <= NUMBERS and len(rows) <= ROWS
    single = len(columns) <= CELLS and len(rows) <= ROWS
    side = max(2, 960 // max(len(rows), len(columns), 1))
    width, height = (
        (46, 30 if len(rows) <= NUMBERS else 22)
        if numbered
        else (24, 20)
        if single
        else (side, side)
    )
    painted = matplotlib.colormaps[colours](
        np.clip((values - limits[0]) / (limits[1] - limits[0] or 1), 0, 1)
    )
    painted = np.round(255 * np.where(np.isnan(values)[..., None], (1, 1, 1, 0), painted)).astype(
        np.uint8
    )
    places = [
        (column * width, row * height) for row in range(len(rows)) for column in range(len(columns))
    ]
    if single:
        cells = [
            _cell(*place, width, height, colour)
            for place, colour in zip(places, painted.reshape(-1, 4), strict=True)
        ]
    else:
        cells = [_raster(painted, width * len(columns), height * len(rows))]
    if numbered:
        flat = zip(places, values.flat, painted.reshape(-1, 4), strict=True)
        cells += [
            _number(x + width / 2, y + height / 2 + 3, scale * v, digits, c)
            for (x, y), v, c in flat
            if v == v
        ]
    left, top, over = _labels(rows), 0.65 * _labels(columns) + 14, 0.77 * _labels(columns)
    cells += [_left(-7, (i + 0.5) * height + 4, rows[i]) for i in _shown(len(rows), height)]
    cells += [_above((i + 0.5) * width, -7, columns[i]) for i in _shown(len(columns), width)]
    size = [left + len(columns) * width + max(4.0, over - width / 2), top + len(rows) * height + 4]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{size[0]:.0f}" height="{size[1]:.0f}" '
        f'viewBox="{-left:.0f} {-top:.0f} {size[0]:.0f} {size[1]:.0f}" '
        f'font-family="{FONT}" font-size="12" style="min-width: {SMALLEST * size[0]:.0f}px">'
        f'<g style="fill: var(--ink, #1d2127)">{"".join(cells)}</g></svg>'
    )


def _cell(x: float, y: float, width: float, height: float, colour: ndarray) -> str:
    if not colour[3]:
        return ""
    return f'<rect x="{x}" y="{y}" width="{width - 2}" height="{height - 2}" rx="2" fill="{_hex(colour)}"/>'


def _raster(painted: ndarray, width: float, height: float) -> str:
    """All cells as one picture: of 300 tasks there are 45,000."""
    file = io.BytesIO()
    Image.fromarray(painted, "RGBA").save(file, "PNG", optimize=True)
    data = base64.b64encode(file.getvalue()).decode()
    return (
        f'<image width="{width}" height="{height}" preserveAspectRatio="none" style="image-rendering: pixelated" '
        f'href="data:image/png;base64,{data}"/>'
    )


def _number(x: float, y: float, value: float, digits: int, colour: ndarray) -> str:
    style = f"fill: {ink(*(colour[:3] / 255))}"
    return f'<text x="{x - 1}" y="{y}" text-anchor="middle" style="{style}">{number(value, digits)}</text>'


def _left(x: float, y: float, name: str) -> str:
    return f'<text x="{x}" y="{y:.1f}" text-anchor="end">{escape(short(name))}</text>'


def _above(x: float, y: float, name: str) -> str:
    return f'<text transform="translate({x:.1f} {y}) rotate(-40)">{escape(short(name))}</text>'


def _shown(count: int, size: float) -> range:
    """Which labels there is room for."""
    return range(0, count, int(np.ceil(15 / size)))


def _labels(names: Sequence[str]) -> float:
    """How wide the longest label is, in pixels."""
    return 14 + max((LETTER * sum(_letters(c) for c in short(name)) for name in names), default=0)


def _letters(character: str) -> float:
    """How wide a character is, in letters."""
    return 2.0 if unicodedata.east_asian_width(character) in "WF" else 1.0


def _hex(colour: ndarray) -> str:
    return "#" + "".join(f"{part:02x}" for part in colour[:3])


def ink(*colour: float) -> str:
    """Black or white, whichever has the higher contrast on a colour (WCAG 2)."""
    red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in colour)
    luminance = 0.2126 * red + 0.7152 * green + 0.0722 * blue
    return "black" if (luminance + 0.05) ** 2 > 1.05 * 0.05 else "white"
