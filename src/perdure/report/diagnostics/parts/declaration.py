"""The declaration that the file of each diagnostic contains."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from perdure.report.picture import Picture
from perdure.report.plain import Record

Part = Record
"""The numbers of one diagnostic, as stored in diagnostics.json."""


@dataclass(frozen=True)
class Table:
    """A table for the terminal; `texts` names the columns after the first that contain text."""

    title: str
    header: list[str]
    rows: list[list[str]]
    texts: tuple[str, ...] = ()


@dataclass(frozen=True)
class Diagnostic:
    """The declaration of a diagnostic, with its numbers and how they are shown.

    Attributes
    ----------
    position
        Diagnostics are computed and shown in the order of their positions.
    title
        The heading of the diagnostic's section on the page.
    reading
        One or two sentences on how to read the numbers.
    axes
        The keys of the numbers, with a letter for each axis: t tasks, p pairs of tasks
        (each once, in order), s steps (before the first task, and after each), l the
        `layers` of the diagnostic, z zones, b bins with c columns. A single number has no
        letter.
    table
        A function that returns the table for the terminal, from the numbers and the task names.
    pictures
        A function that returns the figures for the page, from the numbers and the task names.
    reads_examples
        True if the diagnostic is computed from examples, and needs those of at least one task.
    """

    position: int
    title: str
    reading: str
    axes: Mapping[str, str]
    table: Callable[[Part, Sequence[str]], Table]
    pictures: Callable[[Part, Sequence[str]], list[Picture]]
    reads_examples: bool = False
