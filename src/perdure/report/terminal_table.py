"""Tables for a terminal of any width: words may be wrapped, but numbers are never cut."""

import textwrap
from collections.abc import Collection, Sequence

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from perdure.errors import printable

GAP = 2
"""The number of spaces between two columns."""
WORD = 12
"""Words of up to this many characters are never broken."""


def print_table(
    console: Console,
    header: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    texts: Collection[int] = (0,),
    title: str = "",
) -> None:
    """Print a table, or each row as a block of lines if the terminal is too narrow.

    Parameters
    ----------
    texts
        The indices of the columns with names and words, which may be wrapped. All others
        contain numbers.
    """
    header = [printable(name) for name in header]
    cells = []
    for row in rows:
        cells.append([printable(cell) for cell in row])
    if title:
        console.print(Text(printable(title), style="italic"))
    widths = _widths(console.width, header, cells, texts)
    if widths is None:
        return _print_blocks(console, header, cells, texts)
    drawn = Table(box=None, padding=(0, GAP, 0, 0))
    for number, (name, width) in enumerate(zip(header, widths, strict=True)):
        justify = "left" if number in texts else "right"
        drawn.add_column(
            Text(name),
            justify=justify,
            width=width,
            overflow="fold",
        )
    for row in cells:
        texts_of_row = []
        for cell, width in zip(row, widths, strict=True):
            texts_of_row.append(Text(_broken(cell, width)))
        drawn.add_row(*texts_of_row)
    console.print(drawn)


def _broken(cell: str, width: int) -> str:
    """Put a rule's settings in parentheses on a separate line if the cell is wrapped anyway."""
    if cell_len(cell) <= width or cell.startswith("("):
        return cell
    return cell.replace("(", "\n(", 1)


def _widths(
    room: int, header: Sequence[str], rows: Sequence[Sequence[str]], texts: Collection[int]
) -> list[int] | None:
    """Return the width of each column, or None if the columns cannot fit.

    The widest column that can still be wrapped is narrowed, again and again, until all columns fit.
    """
    least = []
    widths = []
    for number, name in enumerate(header):
        column = [row[number] for row in rows]
        widths.append(max(cell_len(cell) for cell in [name, *column]))
        # The words of a header may be on separate lines, even above numbers.
        pieces = name.split()
        if number in texts:
            for cell in column:
                pieces += cell.split()
            longest = max((cell_len(piece) for piece in pieces), default=0)
            least.append(min(longest, WORD))
        else:
            pieces += column
            least.append(max((cell_len(piece) for piece in pieces), default=0))
    while sum(widths) + GAP * len(widths) > room:
        foldable = [number for number, width in enumerate(widths) if width > least[number]]
        # Numbers are never cut, so this table has to be printed in another way.
        if not foldable:
            return None
        # One character at a time, so that the widest columns shrink to the same width.
        widest = max(foldable, key=widths.__getitem__)
        widths[widest] -= 1
    return widths


def _print_blocks(
    console: Console, header: Sequence[str], rows: Sequence[Sequence[str]], texts: Collection[int]
) -> None:
    """Print each row as a block: its name and, below it, the other cells with their headers."""
    # The first column of names is the heading of a block.
    first = min(texts)
    for row in rows:
        _print_folded(console, row[first], indent=0)
        numbers = []
        for number, (name, cell) in enumerate(zip(header, row, strict=True)):
            if number == first or not cell:
                continue
            if number in texts:
                text = f"{name}: {cell}" if name else cell
                _print_folded(console, text, indent=GAP)
            else:
                numbers.append(f"{name} {cell}".strip())
        _print_pairs(console, numbers)


def _print_pairs(console: Console, pairs: Sequence[str]) -> None:
    """Print names with their numbers, several per line if they fit; a number is never cut."""
    width = console.width - GAP
    line = ""
    for pair in pairs:
        longer = f"{line}{' ' * GAP}{pair}" if line else pair
        if cell_len(longer) <= width:
            line = longer
            continue
        if line:
            _print_folded(console, line, indent=GAP)
        line = pair
        if cell_len(pair) > width:
            # The name takes up separate lines, and the number is below it.
            name, _, line = pair.rpartition(" ")
            _print_folded(console, name, indent=GAP)
    if line:
        _print_folded(console, line, indent=GAP)


def _print_folded(console: Console, text: str, *, indent: int) -> None:
    """Print a text, wrapped between words and indented by `indent` spaces."""
    space = " " * indent
    folded = textwrap.wrap(
        text,
        max(console.width, 2 * GAP),  # `textwrap` needs room for the indent and a letter
        initial_indent=space,
        subsequent_indent=space,
    )
    for line in folded:
        console.print(Text(line))
