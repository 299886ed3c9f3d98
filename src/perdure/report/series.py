"""What a page compares, and how each of it looks in every figure: one colour has one meaning on the whole page.

A colour stands for a group of runs with one of its rules. The way in which the task is known has a line and a marker
(and a hatch, for bars). Whatever else is drawn, is drawn in grey.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from perdure.report.svg import SOFT

Summary = Mapping[str, Any]
Way = tuple[str, str]
"""A way to know the task: its key, and the words for it."""

# Colours that colour-blind people can tell apart, after Okabe and Ito 2008. Grey is not among them.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#b38600")
LINES = ("-", "--", ":", "-.")
MARKERS = "os^Dv<>P"
HATCHES = ("", "////", "....", "xxxx")
FIRST_WAYS = ("posterior", "concatenated", "given")
DRAWN = 16
"""The most lines that a reader can tell apart."""


@dataclass(frozen=True)
class Look:
    """How a line, its points and its bars are drawn."""

    colour: str = SOFT
    line: str = "-"
    marker: str = "o"
    hatch: str = ""


@dataclass(frozen=True)
class Series:
    """One result that is compared with others: its title, its look, and its numbers."""

    title: str
    look: Look
    result: Mapping[str, Any]


def ways(summary: Summary) -> list[Way]:
    """List the ways to know the task with which any run was measured."""
    words = {}
    for run in summary["runs"]:
        for result in run["results"]:
            words[result["task_id"]] = result["known"]
    first = [key for key in FIRST_WAYS if key in words]
    others = [key for key in words if key not in FIRST_WAYS]
    return [(key, words[key]) for key in first + others]


class Looks:
    """The looks of a page: the same for a run, a rule and a way to know the task in each of its figures."""

    def __init__(self, summary: Summary):
        self.several = len(summary["groups"]) > 1
        self._ways = [key for key, _ in ways(summary)]
        self._groups: dict[int, str] = {}
        keys = []
        for group in summary["groups"]:
            for number in group["runs"]:
                self._groups[number] = group["title"]
                keys.append((group["title"], summary["runs"][number]["rule"]))
            keys += [(group["title"], result["rule"]) for result in group["results"]]
        self._numbers = {key: number for number, key in enumerate(dict.fromkeys(keys))}

    def of(self, group: str, rule: str | None, task_id: str | None = None) -> Look:
        """Return the look of a group's results with a rule, for one way to know the task."""
        number = self._numbers[group, rule]
        way = self._ways.index(task_id) if task_id in self._ways else 0
        # Several groups are drawn with one way in a figure, so that lines and markers are free to tell groups apart.
        marker = number if self.several else way
        line = number // len(COLOURS) if self.several else way
        return Look(
            colour=COLOURS[number % len(COLOURS)],
            line=LINES[line % len(LINES)],
            marker=MARKERS[marker % len(MARKERS)],
            hatch=HATCHES[way % len(HATCHES)],
        )

    def of_run(self, number: int, rule: str | None, task_id: str | None = None) -> Look:
        """Return the look of one run: that of its group."""
        return self.of(self._groups[number], rule, task_id)


def compared(summary: Summary, known: Sequence[Way]) -> list[Series]:
    """List what is compared in these ways to know the task: all rules of each group, or its own if there are many."""
    results = []
    for task_id, _ in known:
        for group in summary["groups"]:
            for result in group["results"]:
                if result["task_id"] == task_id and result["metric"] == "accuracy":
                    results.append((group["title"], result))
    if len(results) > DRAWN:
        results = [(group, result) for group, result in results if result["own"]]
    several_rules = len({result["rule"] for _, result in results}) > 1
    looks = Looks(summary)
    series = []
    for group, result in results:
        words = [group] if looks.several else []
        words += [result["rule"]] if several_rules else []
        words += [result["known"]] if len(known) > 1 else []
        title = " · ".join(words) or result["rule"]
        series.append(Series(title, looks.of(group, result["rule"], result["task_id"]), result))
    return series
