"""The contents of a report: sections, and in them figures with the numbers behind them."""

from collections.abc import Sequence
from dataclasses import dataclass, field

Cell = str | int | float | None
"""A table's value; None if it was not measured."""


@dataclass(frozen=True)
class Picture:
    """A figure, and its numbers as a table.

    Attributes
    ----------
    caption
        What is shown, in a few words.
    svg
        The figure itself.
    header, rows
        The table: the names of its columns, and its rows. Shares are from 0 to 1; None means not
        measured.
    """

    caption: str
    svg: str
    header: Sequence[str]
    rows: Sequence[Sequence[Cell]]


@dataclass(frozen=True)
class Section:
    """A part of the page: a title, a sentence on how to read its figures, and the figures.

    A folded section is closed when the page opens.
    """

    title: str
    note: str = ""
    pictures: list[Picture] = field(default_factory=list)
    folded: bool = False
