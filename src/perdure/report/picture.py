"""The contents of a report: sections that contain figures, and the numbers behind the figures."""

from collections.abc import Sequence
from dataclasses import dataclass, field

Cell = str | int | float | None
"""The value of a table cell; None if it was not measured."""


@dataclass(frozen=True)
class Picture:
    """A figure, together with its numbers as a table.

    Attributes
    ----------
    caption
        A few words on what the figure shows.
    svg
        The figure as SVG text.
    header, rows
        The names of the table's columns, and its rows. Shares are from 0 to 1; None means
        not measured.
    """

    caption: str
    svg: str
    header: Sequence[str]
    rows: Sequence[Sequence[Cell]]


@dataclass(frozen=True)
class Section:
    """A section of the page, with a title, a note on how to read its figures, and the figures.

    A `folded` section is collapsed when the page opens.
    """

    title: str
    note: str = ""
    pictures: list[Picture] = field(default_factory=list)
    folded: bool = False
