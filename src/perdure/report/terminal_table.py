"""Tables on a terminal of any width: words are folded, and numbers are never cut."""

import textwrap
from collections.abc import Collection, Sequence

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from perdure.errors import printable

GAP = 2  # columns of the terminal between two of the table
WORD = 12  # a word that is longer may be folded inside


def print_table(
    console: Console,
    header: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    texts: Collection[int] = (0,),
    title: str = "",
) -> None:
    """Print a table; where the terminal is too narrow for it, each row as a block of lines.

    Parameters
    ----------
    texts
        The columns of names and words, which may be folded. All others are numbers.
    """
    header = [printable(name) for name in header]
    cells = [[printable(cell) for cell in row] for row in rows]
    if title:
        console.print(Text(printable(title), style="italic"))
    widths = _widths(console.width, header, cells, texts)
    if widths is None:
        return _print_blocks(console, header, cells, texts)
    drawn = Table(box=None, padding=(0, GAP, 0, 0))
    for number, (name, width) in enumerate(zip(header, widths, strict=True)):
        justify = "left" if number in texts else "right"
        drawn.add_column(Text(name), justify=justify, width=width, overflow="fold")
    for row in cells:
        drawn.add_row(
            *(Text(_broken(cell, width)) for cell, width in zip(row, widths, strict=True))
        )
    console.print(drawn)


def _broken(cell: str, width: int) -> str:
    """Put the settings of a rule, in brackets, on a line of their own where the cell is folded anyway."""
    return (
        cell.replace("(", "\n(", 1) if cell_len(cell) > width and not cell.startswith("(") else cell
    )


def _widths(
    room: int, header: Sequence[str], rows: Sequence[Sequence[str]], texts: Collection[int]
) -> list[int] | None:
    """Return the width of each column, the widest made narrower until all fit; nothing if they never do."""
    least = []
    widths = []
    for number, name in enumerate(header):
        column = [row[number] for row in rows]
        widths.append(max(map(cell_len, [name, *column])))
        words = max(map(cell_len, name.split()), default=0)
        if number in texts:
            inside = max((cell_len(word) for cell in column for word in cell.split()), default=0)
            least.append(min(max(words, inside), WORD))
        else:
            least.append(max([words, *map(cell_len, column)]))
    while sum(widths) + GAP * len(widths) > room:
        foldable = [number for number, width in enumerate(widths) if width > least[number]]
        if not foldable:
            return None
        widest = max(foldable, key=widths.__getitem__)
        widths[widest] -= 1
    return widths


def _print_blocks(
    console: Console, header: Sequence[str], rows: Sequence[Sequence[str]], texts: Collection[int]
) -> None:
    """Print each row as its name and, below, what is said of it."""
    first = min(texts)
    for row in rows:
        _print_folded(console, row[first], indent=0)
        numbers = []
        for number, (name, cell) in enumerate(zip(header, row, strict=True)):
            if number in texts and number != first and cell:
                _print_folded(console, f"{name}: {cell}" if name else cell, indent=GAP)
            elif number not in texts and cell:
                numbers.append(f"{name} {cell}".strip())
        _print_pairs(console, numbers)


def _print_pairs(console: Console, pairs: Sequence[str]) -> None:
    """Print names with their numbers, as many on a line as there is room for; a number is never cut."""
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
        if (
            cell_len(pair) > width
        ):  # the name fills lines of its own, and the number stands below it
            name, _, line = pair.rpartition(" ")
            _print_folded(console, name, indent=GAP)
    if line:
        _print_folded(console, line, indent=GAP)


def _print_folded(console: Console, text: str, *, indent: int) -> None:
    """Print a text, folded between its words."""
    space = " " * indent
    for line in textwrap.wrap(
        text, max(console.width, 2 * GAP), initial_indent=space, subsequent_indent=space
    ):
        console.print(Text(line))
