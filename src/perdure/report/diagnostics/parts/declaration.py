"""The declaration that each file of a diagnostic makes."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from perdure.report.picture import Picture
from perdure.report.plain import Record

Part = Record
"""The numbers of one diagnostic, as diagnostics.json contains them."""


@dataclass(frozen=True)
class Table:
    """A table on the terminal; `texts` are the columns after the first that hold text."""

    title: str
    header: list[str]
    rows: list[list[str]]
    texts: tuple[str, ...] = ()


@dataclass(frozen=True)
class Diagnostic:
    """The numbers of a diagnostic, and how they are shown.

    Attributes
    ----------
    position
        Diagnostics are computed and shown in the order of their positions.
    title
        The heading of its section on the page.
    reading
        One or two sentences on how to read it.
    axes
        Its numbers by key, with a letter for each axis: t tasks, p pairs of tasks (each once, in
        their order), s steps (before the first task, and after each), l the part's `layers`,
        z zones, b bins with c columns. No letter is a single number.
    table
        Makes the table on the terminal from the numbers and the names of the tasks.
    pictures
        Makes the figures on the page from the same.
    reads_examples
        Whether it is computed from examples, and needs those of at least one task.
    """

    position: int
    title: str
    reading: str
    axes: Mapping[str, str]
    table: Callable[[Part, Sequence[str]], Table]
    pictures: Callable[[Part, Sequence[str]], list[Picture]]
    reads_examples: bool = False
