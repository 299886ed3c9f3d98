"""The results that a page compares, and their styles: a colour has one meaning on the whole page.

A colour stands for a group of runs with one of its rules. Each `task_id` has its own line style and
marker (and a hatch, for bars). Everything else is drawn in grey.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from perdure.report.markdown import kind_of_score
from perdure.report.plain import Record, Summary
from perdure.report.svg import SOFT

Way = tuple[str, str]
"""A `task_id`: its key, and its description."""

# Colours that colour-blind people can tell apart, after Okabe and Ito 2008, without grey.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#b38600")
LINES = ("-", "--", ":", "-.")
MARKERS = "os^Dv<>P"
HATCHES = ("", "////", "....", "xxxx")
FIRST_WAYS = ("posterior", "none", "given")
DRAWN = 16
"""The most lines that a reader can tell apart."""


@dataclass(frozen=True)
class Look:
    """The style of a line, its points and its bars."""

    colour: str = SOFT
    line: str = "-"
    marker: str = "o"
    hatch: str = ""


@dataclass(frozen=True)
class Series:
    """One result that is compared with others: its title, its style, and its numbers."""

    title: str
    look: Look
    result: Record


def ways(summary: Summary) -> list[Way]:
    """List the `task_id`s that any run was measured with, the main ones first."""
    words = {}
    for run in summary["runs"]:
        for result in run["results"]:
            key = result["task_id"]
            words[key] = result["known"]
    first = [key for key in FIRST_WAYS if key in words]
    others = [key for key in words if key not in FIRST_WAYS]
    return [(key, words[key]) for key in first + others]


class Looks:
    """The styles of a page: a run, a rule and a `task_id` look the same in every figure."""

    def __init__(self, summary: Summary):
        self.several = len(summary["groups"]) > 1
        self._ways = [key for key, _ in ways(summary)]
        self._groups: dict[int, str] = {}
        keys = []
        for group in summary["groups"]:
            title = group["title"]
            for number in group["runs"]:
                run = summary["runs"][number]
                self._groups[number] = title
                keys.append((title, run["rule"]))
            for result in group["results"]:
                keys.append((title, result["rule"]))
        # Numbers in the order of the page, so that the first groups get the first colours.
        unique = dict.fromkeys(keys)
        self._numbers = {key: number for number, key in enumerate(unique)}

    def of(self, group: str, rule: str | None, task_id: str | None = None) -> Look:
        """Return the style of a group's results with a rule, for one `task_id`."""
        number = self._numbers[group, rule]
        way = 0
        if task_id in self._ways:
            way = self._ways.index(task_id)
        # Of several groups a figure shows one way only: lines and markers are free for groups.
        marker = way
        line = way
        if self.several:
            marker = number
            # Another line only once the colours are used up.
            line = number // len(COLOURS)
        return Look(
            colour=COLOURS[number % len(COLOURS)],
            line=LINES[line % len(LINES)],
            marker=MARKERS[marker % len(MARKERS)],
            hatch=HATCHES[way % len(HATCHES)],
        )

    def of_run(self, number: int, rule: str | None, task_id: str | None = None) -> Look:
        """Return the style of one run, which is that of its group."""
        return self.of(self._groups[number], rule, task_id)


def of_task(result: Record, column: int) -> str:
    """Return the title of a task: its name and, if the tasks' scores differ, its score.

    Examples
    --------
    >>> of_task({"tasks": ["news"], "scores": ["rouge_l"], "metric": "accuracy, rouge_l"}, 0)
    'news (rouge_l)'
    """
    name = result["tasks"][column]
    score = result["scores"][column]
    return f"{name} ({score})" if score and score != result["metric"] else name


def _averages(summary: Summary, task_id: str) -> list[tuple[str, Record]]:
    """List each group's title with its results for one `task_id`."""
    results = []
    for group in summary["groups"]:
        for result in group["results"]:
            if result["task_id"] == task_id:
                results.append((group["title"], result))
    return results


def compared(summary: Summary, known: Sequence[Way]) -> list[Series]:
    """List the results to compare for these `task_id`s.

    They are those of all rules of each group, or of the group's own rule if there are too many.
    """
    results = []
    for task_id, _ in known:
        results += _averages(summary, task_id)
    # With too many lines nobody can tell them apart; the other rules are in the table of results.
    if len(results) > DRAWN:
        results = [(group, result) for group, result in results if result["own"]]
    rules = {result["rule"] for _, result in results}
    several_rules = len(rules) > 1
    scores = {result["metric"] for _, result in results}
    looks = Looks(summary)
    series = []
    for group, result in results:
        # A title names only that in which the results differ.
        words = []
        if looks.several:
            words.append(group)
        if several_rules:
            words.append(result["rule"])
        if len(known) > 1:
            words.append(result["known"])
        # Another score has another scale: a figure that has several says which line is which.
        if len(scores) > 1:
            words.append(kind_of_score(result["metric"]))
        title = " · ".join(words) or result["rule"]
        look = looks.of(group, result["rule"], result["task_id"])
        series.append(Series(title, look, result))
    return series
