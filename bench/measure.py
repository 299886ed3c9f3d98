"""CPU time and memory of two sides in one process, and the table of their ratios."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch.profiler import ProfilerActivity, profile


def in_turn(
    sides: dict[str, Callable[[], Any]], times: int
) -> tuple[dict[str, float], dict[str, Any]]:
    """The least CPU seconds of each side, run one after the other so many times,
    and what each returned.

    CPU time, not the clock's: other work on the machine would count in the latter.
    """
    seconds, results = dict.fromkeys(sides, float("inf")), {}
    for _ in range(times):
        for name, run in sides.items():
            start = time.process_time()
            results[name] = run()
            seconds[name] = min(seconds[name], time.process_time() - start)
    return seconds, results


def temporary_bytes(run: Callable[[], Any]) -> tuple[int, Any]:
    """The most memory that torch holds while a function runs, above what its result keeps,
    and the result.
    """
    run()  # the first time allocates what stays
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        result = run()
    events = [
        event for event in profiled.profiler.kineto_results.events() if event.name() == "[memory]"
    ]
    now = most = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        most = max(most, now)
    return most - now, result


@dataclass(frozen=True)
class Row:
    """One comparison: a ratio and its target (`least`: at least that; else at most),
    or no target.
    """

    what: str
    sides: str
    ratio: float
    target: float | None
    least: bool = True
    equal: str = ""

    @property
    def met(self) -> bool:
        if self.target is None:
            return True
        return self.ratio >= self.target if self.least else self.ratio <= self.target


def table(rows: list[Row]) -> str:
    """The rows as a Markdown table."""
    lines = ["| what | sides | ratio | target | equal |", "|---|---|---:|---:|---|"]
    for row in rows:
        target = "" if row.target is None else f"{'≥' if row.least else '≤'} {row.target:g}"
        missed = "" if row.met else " **missed**"
        lines.append(
            f"| {row.what} | {row.sides} | {row.ratio:.2f} | {target}{missed} | {row.equal} |"
        )
    return "\n".join(lines)
