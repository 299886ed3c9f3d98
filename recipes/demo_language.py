"""Run `perdure demo --language` with several seeds, and write one table.

    python recipes/demo_language.py --seeds 0 1 2

A seed is that of the examples, of the adapters' initial weights and of the order of the examples.
Runs that are there already under `runs` are taken up. The table goes to
recipes/results/demo_language.csv: the accuracy on each task after the last one, for each run, rule
and way to know the task. Means over seeds go to the terminal, with the CPU time of this process.
"""

import argparse
import statistics
import time
from pathlib import Path
from typing import Any

from common import write

from perdure import Run
from perdure.cli import demo
from perdure.runs.extend import evaluate_run

RESULTS = Path(__file__).parent / "results" / "demo_language.csv"


def rows_of(folder: Path, seed: int) -> list[dict[str, Any]]:
    """Return the scores of all runs of a demo after the last task."""
    rows = []
    for settings in demo.DEMOS["language"].runs:
        run = Run(folder / str(settings["name"]).lower())
        scores = run.scores()
        last = max(score["step"] for score in scores)
        for score in scores:
            if score["step"] == last and score["metric"] == "accuracy":
                kept = {key: score[key] for key in ("rule", "task_id", "task", "value")}
                rows.append({"run": settings["name"], "seed": seed} | kept)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    arguments = parser.parse_args()
    rows = []
    for seed in arguments.seeds:
        started = time.process_time()
        folder = arguments.runs / f"demo-language-{seed}"
        demo.demo(folder, "language", seed=seed, quiet=False)
        # The rule of PIC's paper, beside the one that the demo takes.
        evaluate_run(folder / "pic", "task_arithmetic", steps="last")
        rows += rows_of(folder, seed)
        print(f"seed {seed}: {time.process_time() - started:.0f} s of CPU time")
    write(RESULTS, rows)
    show(rows)


def show(rows: list[dict[str, Any]]) -> None:
    """Print the average accuracy of each run, rule and way: mean ± deviation over seeds."""
    values: dict[tuple[str, str, str], dict[int, list[float]]] = {}
    for row in rows:
        key = (row["run"], row["rule"], row["task_id"])
        values.setdefault(key, {}).setdefault(row["seed"], []).append(100 * row["value"])
    for key, by_seed in values.items():
        averages = [statistics.mean(of_tasks) for of_tasks in by_seed.values()]
        spread = statistics.stdev(averages) if len(averages) > 1 else 0.0
        print(*key, f"{statistics.mean(averages):.1f} ± {spread:.1f}", sep="  ")


if __name__ == "__main__":
    main()
