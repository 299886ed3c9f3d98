"""Heat maps of numbers in rows and columns.

The SVG is written without matplotlib, because a report may contain a hundred heat maps.
"""

import base64
import io
import unicodedata
from collections.abc import Sequence
from html import escape

import matplotlib
import numpy as np
from jaxtyping import Float
from numpy import ndarray
from PIL import Image

from perdure.report.markdown import number
from perdure.report.picture import Picture
from perdure.report.plain import Record
from perdure.report.series import of_task
from perdure.report.svg import FONT, SMALLEST, short

NUMBERS = 12  # with more columns, cells do not contain numbers
CELLS = 40  # with more columns, cells are not drawn one by one
ROWS = 60  # with more rows, neither
LETTER = 7.2  # pixels: few letters are wider
SIDE = 960  # pixels: the longer side of a map whose cells are not drawn one by one


def matrix(result: Record, limits: tuple[float, float]) -> Picture:
    """Draw an accuracy matrix, with the score on each column's task after learning each row's task.

    Empty rows are left out.
    """
    scores = result["matrix"]
    measured = []
    for step, row in enumerate(scores):
        if any(value is not None for value in row):
            measured.append(step)
    measured = measured or [0]  # a map has at least one row
    names = result["tasks"]
    values = np.array([scores[step] for step in measured], dtype=float)
    learned = [names[step] for step in measured]
    columns = [of_task(result, column) for column in range(len(names))]
    return Picture(
        caption=result["name"],
        svg=heat(
            values,
            learned,
            columns,
            limits=limits,
        ),
        header=["after learning", *columns],
        rows=[[names[step], *scores[step]] for step in measured],
    )


def limits(results: Sequence[Record]) -> tuple[float, float]:
    """Return the limits of a colour scale for all matrices, rounded down and up to a tenth."""
    values = []
    for result in results:
        for row in result["matrix"]:
            values += [value for value in row if value is not None]
    if not values:
        return 0.0, 1.0
    low = float(np.floor(10 * min(values)) / 10)
    high = float(np.ceil(10 * max(values)) / 10)
    # If all values are equal, the scale still needs a width.
    return low, max(high, low + 0.1)


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
    """Return a heat map as SVG; nan stands for a missing number.

    Parameters
    ----------
    limits
        The values of the first and the last colour.
    colours
        The name of a matplotlib colour map.
    scale, digits
        Cells show `scale` times the value, rounded to `digits` decimal places.
    """
    width, height = _cell_size(len(rows), len(columns))
    painted = _painted(values, limits, colours)
    cells = _cells(painted, width, height)
    if _is_numbered(len(rows), len(columns)):
        scaled = scale * values
        cells += _numbers(
            scaled,
            painted,
            width,
            height,
            digits,
        )
    # Labels end 7 pixels from the cells; a baseline 4 pixels below the middle centres the letters.
    for row in _labelled(len(rows), height):
        middle = (row + 0.5) * height
        cells.append(_left(-7, middle + 4, rows[row]))
    for column in _labelled(len(columns), width):
        middle = (column + 0.5) * width
        cells.append(_above(middle, -7, columns[column]))

    # Names of columns are rotated by 40°: their height is 0.65 (the sine) times their
    # length, and their width 0.77 (the cosine). The last one extends beyond the right
    # border.
    left = _label_width(rows)
    label = _label_width(columns)
    top = 0.65 * label + 14
    over = max(4.0, 0.77 * label - width / 2)
    full_width = left + len(columns) * width + over
    full_height = top + len(rows) * height + 4
    content = "".join(cells)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" '
        f'width="{full_width:.0f}" height="{full_height:.0f}" '
        f'viewBox="{-left:.0f} {-top:.0f} {full_width:.0f} {full_height:.0f}" '
        f'font-family="{FONT}" font-size="12" '
        f'style="min-width: {SMALLEST * full_width:.0f}px">'
        f'<g style="fill: var(--ink, #1d2127)">{content}</g></svg>'
    )


def _is_numbered(rows: int, columns: int) -> bool:
    return columns <= NUMBERS and rows <= ROWS


def _is_single(rows: int, columns: int) -> bool:
    """Return True if cells are drawn one by one."""
    return columns <= CELLS and rows <= ROWS


def _cell_size(rows: int, columns: int) -> tuple[int, int]:
    """Return the width and height of a cell in pixels."""
    if _is_numbered(rows, columns):
        return 46, 30 if rows <= NUMBERS else 22
    if _is_single(rows, columns):
        return 24, 20
    side = max(2, SIDE // max(rows, columns, 1))
    return side, side


def _painted(
    values: Float[ndarray, "rows columns"], limits: tuple[float, float], colours: str
) -> ndarray:
    """Return the colour of each cell as red, green, blue and alpha from 0 to 255."""
    low, high = limits
    extent = high - low or 1  # equal limits must not divide by zero
    shares = (values - low) / extent
    shares = np.clip(shares, 0, 1)
    painted = matplotlib.colormaps[colours](shares)
    transparent = (1, 1, 1, 0)
    missing = np.isnan(values)[..., None]
    painted = np.where(missing, transparent, painted)
    painted = np.round(255 * painted)
    return painted.astype(np.uint8)


def _cells(painted: ndarray, width: int, height: int) -> list[str]:
    rows, columns = painted.shape[:2]
    if not _is_single(rows, columns):
        return [_raster(painted, width * columns, height * rows)]
    cells = []
    for row in range(rows):
        for column in range(columns):
            x = column * width
            y = row * height
            colour = painted[row, column]
            cells.append(_cell(x, y, width, height, colour))
    return cells


def _numbers(
    values: Float[ndarray, "rows columns"],
    painted: ndarray,
    width: int,
    height: int,
    digits: int,
) -> list[str]:
    texts = []
    for (row, column), value in np.ndenumerate(values):
        if np.isnan(value):
            continue
        x = (column + 0.5) * width
        # The text's baseline is 3 pixels below the middle, so that its digits are centred.
        y = (row + 0.5) * height + 3
        colour = painted[row, column]
        texts.append(_number(x, y, value, digits, colour))
    return texts


def _cell(x: float, y: float, width: float, height: float, colour: ndarray) -> str:
    if not colour[3]:
        return ""
    # Two pixels less, for the gap between cells.
    return (
        f'<rect x="{x}" y="{y}" width="{width - 2}" height="{height - 2}" rx="2" '
        f'fill="{_hex(colour)}"/>'
    )


def _raster(painted: ndarray, width: float, height: float) -> str:
    """Return all cells as a single image, because 300 tasks have 45,000 of them."""
    file = io.BytesIO()
    Image.fromarray(painted, "RGBA").save(file, "PNG", optimize=True)
    data = base64.b64encode(file.getvalue()).decode()
    return (
        f'<image width="{width}" height="{height}" preserveAspectRatio="none" '
        f'style="image-rendering: pixelated" href="data:image/png;base64,{data}"/>'
    )


def _number(x: float, y: float, value: float, digits: int, colour: ndarray) -> str:
    red, green, blue = colour[:3] / 255
    style = f"fill: {ink(red, green, blue)}"
    text = number(value, digits)
    return f'<text x="{x - 1}" y="{y}" text-anchor="middle" style="{style}">{text}</text>'


def _left(x: float, y: float, name: str) -> str:
    return f'<text x="{x}" y="{y:.1f}" text-anchor="end">{escape(short(name))}</text>'


def _above(x: float, y: float, name: str) -> str:
    return f'<text transform="translate({x:.1f} {y}) rotate(-40)">{escape(short(name))}</text>'


def _labelled(count: int, size: float) -> range:
    """Return the indices of the rows or columns that get a label, which takes 15 pixels."""
    return range(0, count, int(np.ceil(15 / size)))


def _label_width(names: Sequence[str]) -> float:
    """Return the width of the longest label, with a margin, in pixels."""
    longest = 0.0
    for name in names:
        letters = sum(_letters(character) for character in short(name))
        longest = max(longest, LETTER * letters)
    return 14 + longest


def _letters(character: str) -> float:
    """Return the width of a character in letters; wide East Asian characters take up two."""
    return 2.0 if unicodedata.east_asian_width(character) in "WF" else 1.0


def _hex(colour: ndarray) -> str:
    red, green, blue = colour[:3]
    return f"#{red:02x}{green:02x}{blue:02x}"


def ink(*colour: float) -> str:
    """Return black or white, whichever has the higher contrast on a colour (WCAG 2)."""
    red, green, blue = (_linear(channel) for channel in colour)
    luminance = 0.2126 * red + 0.7152 * green + 0.0722 * blue
    # Contrast is (lighter + 0.05) / (darker + 0.05); white has luminance 1, and black 0.
    lifted = luminance + 0.05
    return "black" if lifted**2 > 1.05 * 0.05 else "white"


def _linear(channel: float) -> float:
    """Convert an sRGB channel to linear light."""
    if channel <= 0.04045:
        return channel / 12.92
    return ((channel + 0.055) / 1.055) ** 2.4
