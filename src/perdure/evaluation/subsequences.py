"""Longest common subsequences, fast enough for thousands of long answers."""

from collections import defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Lengths:
    """The lengths of the longest common subsequences of all beginnings of two sequences.

    A row of the usual table is one integer, because neighbours in it differ by 0 or 1
    (Hyyrö, 2004): a table of all cells would take minutes for the answers to a test
    split.

    Attributes
    ----------
    rows
        Row i is for the first i items of the left sequence. The number of ones among its
        lowest j bits is the length that they have in common with the first j items of the
        right one.
    """

    rows: list[int]

    def at(self, i: int, j: int) -> int:
        """Return the length that the first i and the first j items have in common."""
        lowest = (1 << j) - 1
        return (self.rows[i] & lowest).bit_count()

    @property
    def whole(self) -> int:
        """The length that both sequences have in common."""
        return self.rows[-1].bit_count()


def lengths(left: Sequence[Hashable], right: Sequence[Hashable]) -> Lengths:
    """Return the lengths of the longest common subsequences of all beginnings.

    Examples
    --------
    >>> table = lengths("kitten", "sitting")  # they have `ittn` in common
    >>> table.whole, table.at(3, 2)
    (4, 1)
    """
    places: defaultdict[Hashable, int] = defaultdict(int)
    bit = 1
    for item in right:
        places[item] |= bit
        bit <<= 1
    every_bit = bit - 1
    # Zeros are where the length grows by one: then the sum carries each match up to the
    # next bit that is still a one.
    row = every_bit
    rows = [0]
    for item in left:
        matches = row & places[item]
        carried = row + matches
        row = (carried | (row - matches)) & every_bit
        rows.append(row ^ every_bit)
    return Lengths(rows)
