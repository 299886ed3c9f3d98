"""The results that a page compares, and their styles, which are the same on the whole page.

A colour represents a group of runs with one of its rules. Each `task_id` has a line style
and a marker (and a hatch, for bars). Everything else is drawn in grey.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from perdure.report.markdown import kind_of_score
from perdure.report.plain import Record, Summary
from perdure.report.svg import SOFT

Way = tuple[str, str]
"""A `task_id` and its description."""

# Colours that colour-blind people can tell apart, from Okabe and Ito 2008, without grey.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#b38600")
LINES = ("-", "--", ":", "-.")
MARKERS = "os^Dv<>P"
HATCHES = ("", "////", "....", "xxxx")
FIRST_WAYS = ("posterior", "none", "given")
DRAWN = 16
"""The maximum number of lines in a figure; a reader cannot tell more of them apart."""


@dataclass(frozen=True)
class Look:
    """The style of a line, its points and its bars."""

    colour: str = SOFT
    line: str = "-"
    marker: str = "o"
    hatch: str = ""


@dataclass(frozen=True)
class Series:
    """A result that is compared with others, with its title, its style, and its numbers."""

    title: str
    look: Look
    result: Record


def ways(summary: Summary) -> list[Way]:
    """Return the `task_id`s with which any run was measured, the main ones first."""
    words = {}
    for run in summary["runs"]:
        for result in run["results"]:
            key = result["task_id"]
            words[key] = result["known"]
    first = [key for key in FIRST_WAYS if key in words]
    others = [key for key in words if key not in FIRST_WAYS]
    return [(key, words[key]) for key in first + others]


class Looks:
    """The styles of a page, so that a run, rule and `task_id` look the same in every figure."""

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
        """Return the style of the results of a group of runs with one rule and one `task_id`."""
        number = self._numbers[group, rule]
        way = 0
        if task_id in self._ways:
            way = self._ways.index(task_id)
        # With several groups, a figure shows only one `task_id`, so lines and markers show groups.
        marker = way
        line = way
        if self.several:
            marker = number
            # The line style changes only once all colours are used.
            line = number // len(COLOURS)
        return Look(
            colour=COLOURS[number % len(COLOURS)],
            line=LINES[line % len(LINES)],
            marker=MARKERS[marker % len(MARKERS)],
            hatch=HATCHES[way % len(HATCHES)],
        )

    def of_run(self, number: int, rule: str | None, task_id: str | None = None) -> Look:
        """Return the style of a run, which is the style of its group."""
        return self.of(self._groups[number], rule, task_id)


def of_task(result: Record, column: int) -> str:
    """Return the title of a task: its name and, if tasks have different scores, its score.

    Examples
    --------
    >>> of_task({"tasks": ["news"], "scores": ["rouge_l"], "metric": "accuracy, rouge_l"}, 0)
    'news (rouge_l)'
    """
    name = result["tasks"][column]
    score = result["scores"][column]
    return f"{name} ({score})" if score and score != result["metric"] else name


def _averages(summary: Summary, task_id: str) -> list[tuple[str, Record]]:
    """Return all results for one `task_id`, each with the title of its group."""
    results = []
    for group in summary["groups"]:
        for result in group["results"]:
            if result["task_id"] == task_id:
                results.append((group["title"], result))
    return results


def compared(summary: Summary, known: Sequence[Way]) -> list[Series]:
    """Return the results to compare for the given `task_id`s, with their titles and styles.

    These are the results of all rules of each group, or only of its own rule if there are too many.
    """
    results = []
    for task_id, _ in known:
        results += _averages(summary, task_id)
    # Too many lines cannot be told apart; the other rules are in the table of results.
    if len(results) > DRAWN:
        results = [(group, result) for group, result in results if result["own"]]
    rules = {result["rule"] for _, result in results}
    several_rules = len(rules) > 1
    scores = {result["metric"] for _, result in results}
    looks = Looks(summary)
    series = []
    for group, result in results:
        # A title names only what differs between the results.
        words = []
        if looks.several:
            words.append(group)
        if several_rules:
            words.append(result["rule"])
        if len(known) > 1:
            words.append(result["known"])
        # Scores have different scales, so a figure with several of them names them.
        if len(scores) > 1:
            words.append(kind_of_score(result["metric"]))
        title = " · ".join(words) or result["rule"]
        look = looks.of(group, result["rule"], result["task_id"])
        series.append(Series(title, look, result))
    return series
