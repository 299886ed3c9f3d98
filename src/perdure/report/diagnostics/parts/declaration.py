"""What the file of a diagnostic declares."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from perdure.report.picture import Picture

Part = Mapping[str, Any]
"""The numbers of one diagnostic, as they stand in diagnostics.json."""


@dataclass(frozen=True)
class Table:
    """A table on the terminal; `texts` are the columns behind the first that hold texts, not numbers."""

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
        Those with a smaller one are computed and shown before it.
    title
        The heading of its section on the page.
    reading
        One or two sentences on how it is read.
    axes
        Its numbers by key, and their axes, a letter each: t tasks, p pairs of tasks (each once, in their order), s
        steps (before the first task, and after each), l the part's `layers`, z zones, b bins with c columns. No letter
        is one number.
    table
        Makes the table on the terminal from the numbers and the names of the tasks.
    pictures
        Makes the figures on the page from the same.
    reads_examples
        Whether it is computed from examples of the tasks, and needs those of one task at least.
    """

    position: int
    title: str
    reading: str
    axes: Mapping[str, str]
    table: Callable[[Part, Sequence[str]], Table]
    pictures: Callable[[Part, Sequence[str]], list[Picture]]
    reads_examples: bool = False
