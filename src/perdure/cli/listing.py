"""Texts and lists on the terminal, printed without the report's libraries.

`perdure list` and `perdure show` must start quickly: `perdure.report` imports matplotlib.
"""

import textwrap
from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from perdure.errors import clean, printable


def listing(title: str, rows: Iterable[tuple[str, str]], console: Console | None = None) -> None:
    """Print a title, and below it names with their descriptions."""
    console = console or Console()
    # rich would wrap the title of a table to the width of the table.
    console.print(Text(clean(title), style="italic"))
    drawn = Table(
        show_header=False,
        box=None,
        padding=(0, 2, 0, 0),
    )
    for name, text in rows:
        # In a `Text`, brackets are not markup.
        drawn.add_row(Text(printable(name)), Text(clean(text)))
    console.print(drawn)


def prose(text: str, console: Console | None = None) -> None:
    """Print a docstring, with its paragraphs wrapped to the width of the terminal."""
    console = console or Console()
    paragraph: list[str] = []
    # The empty line at the end closes the last paragraph.
    for line in [*text.splitlines(), ""]:
        breaks = not line.strip() or _is_rule(line)
        # A different indent starts a new paragraph, such as the description of a parameter.
        if paragraph and (breaks or _indent(line) != _indent(paragraph[0])):
            _print_paragraph(console, paragraph)
            paragraph = []
        if breaks:
            console.print(Text(printable(line)))
        else:
            paragraph.append(line)


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip())


def _is_rule(line: str) -> bool:
    """Return True if a line is the underline of a heading."""
    text = line.strip()
    return len(text) > 2 and set(text) == {"-"}


def _print_paragraph(console: Console, lines: Sequence[str]) -> None:
    if lines[0].lstrip().startswith(">>>"):  # lines of code are not wrapped
        for line in lines:
            console.print(Text(printable(line)))
        return
    space = " " * _indent(lines[0])
    joined = printable(" ".join(line.strip() for line in lines))
    folded = textwrap.wrap(
        joined,
        console.width,
        initial_indent=space,
        subsequent_indent=space,
    )
    for line in folded:
        console.print(Text(line))
