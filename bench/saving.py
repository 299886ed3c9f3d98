"""What saving costs a run: the demo's five tasks on MiniLM,
with every function that writes or prepares it timed.

The time is the clock's, not the CPU's, because waiting for the disk is a part of it. The same run
with nothing saved inside a task has to give the same adapters.
The exit status is 1 when it does not, or the target is missed.
"""

import functools
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from measure import Row, table

from perdure import Recipe, Run, learn
from perdure.cli.demo import PIC, TEXT
from perdure.learning.progress import Course
from perdure.models import adapters
from perdure.runs.environment import environment
from perdure.runs.writer import Writer

WRITING = ("task", "unfinished", "measurement", "trim_events", "event")
STEPS = {"every 100 steps (default)": None, "every 10 steps": 10, "never": 10**9}


class Timer:
    """Seconds inside some functions, those that call each other counted once."""

    def __init__(self):
        self.seconds, self.depth = 0.0, 0

    def timed(self, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def wrapper(*arguments: Any, **options: Any) -> Any:
            start, self.depth = time.perf_counter(), self.depth + 1
            try:
                return function(*arguments, **options)
            finally:
                self.depth -= 1
                self.seconds += (time.perf_counter() - start) if self.depth == 0 else 0.0

        return wrapper


def share(checkpoint_steps: int | None, output: Path, timer: Timer) -> float:
    """The share of a run's time that is saving."""
    settings = [] if checkpoint_steps is None else [f"training.checkpoint_steps={checkpoint_steps}"]
    recipe = Recipe.parse(TEXT | PIC | {"evaluation": {"steps": "last"}}, settings)
    timer.seconds, start = 0.0, time.perf_counter()
    recipe.run(output)
    return timer.seconds / (time.perf_counter() - start)


def main() -> int:
    timer = Timer()
    for name in WRITING:
        setattr(Writer, name, timer.timed(getattr(Writer, name)))
    Course.snapshot = timer.timed(Course.snapshot)
    learn_module = sys.modules[learn.__module__]
    learn_module.plant = timer.timed(learn_module.plant)  # the random state of each step
    with tempfile.TemporaryDirectory() as folder:
        shares = {
            what: share(steps, Path(folder) / str(steps), timer) for what, steps in STEPS.items()
        }
        runs = [Run(Path(folder) / str(steps)) for steps in STEPS.values()]
        for task in runs[0].tasks:
            first, *others = [run.load_task(task).adapter.parameters for run in runs]
            assert all(adapters.same(first, other) for other in others), task
        size = sum(path.stat().st_size for path in runs[0].folder.rglob("*"))
    targets = [2.0, None, None]
    rows = [
        Row(
            f"saving; inside tasks {what}",
            "% of the run's time",
            100 * value,
            target,
            least=False,
            equal="adapters",
        )
        for (what, value), target in zip(shares.items(), targets, strict=True)
    ]
    print(table(rows))
    print(f"\nThe run's folder: {size / 1e6:.1f} MB, five tasks, {environment()['cpus']} CPUs.")
    return 0 if all(row.met for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
