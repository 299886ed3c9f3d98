"""Run a recipe from several starts and seeds, combine what was learned in every way,
and write one table.

    python recipes/sweep.py recipes/clinc150.yaml --folder ../shared/data/intents --seeds 0 1 2

A run that is there already is taken up, and so is a combination that was measured already. The
table goes to recipes/results/<recipe>.csv: one row per start, seed, space, since,
scale and way to know the task.
"""

import argparse
from pathlib import Path

from common import measure_all, write

from perdure import Recipe, Run
from perdure.evaluation import metrics

SCALES = ("0.0", "0.1", "0.2", "0.3", "0.5", "1.0")
DATA_FREE = ("1/n", "1/sqrt(n)")


def combinations(start: str, full: bool) -> list[tuple[str, list[str]]]:
    """Rules and settings to measure; the full sweep for the first seed only."""
    rules: list[tuple[str, list[str]]] = [("oracle", []), ("last", [])]
    for space in ("delta", "factor"):
        for since in ("pretrained", "start") if start == "previous" else ("pretrained",):
            scales = (*SCALES, *DATA_FREE, "search") if full else ("1/n", "search")
            where = [f"space={space}", f"since={since}"]
            rules += [("task_arithmetic", [f"scale={scale}", *where]) for scale in scales]
    return rules


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--folder", help="the data, where they are not to come from the hub")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--starts", nargs="+", default=["fresh", "previous"])
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    arguments = parser.parse_args()
    rows = []
    for seed in arguments.seeds:
        for start in arguments.starts:
            folder = arguments.runs / f"{arguments.recipe.stem}-{start}-{seed}"
            if not (folder / "combined.json").is_file():
                settings = [f"method.start={start}", f"seed={seed}"]
                settings += [f"stream.folder={arguments.folder}"] if arguments.folder else []
                Recipe.read(arguments.recipe, settings).run(folder, quiet=False)
            results = Run(folder)
            measure_all(results, combinations(start, full=seed == arguments.seeds[0]))
            rows += table(results, start, seed)
            output = arguments.recipe.parent / "results" / f"{arguments.recipe.stem}.csv"
            write(output, rows)


def table(results: Run, start: str, seed: int) -> list[dict[str, str | int]]:
    """The average accuracy after the last task, in percent."""
    rows = []
    for rule in dict.fromkeys(row["rule"] for row in results.scores()):
        for task_id in ("given", "posterior", "none"):
            average = metrics.average_accuracy(results.matrix(rule, task_id))
            row = {"start": start, "seed": seed, "rule": rule, "task_id": task_id}
            rows.append(row | {"average_accuracy": f"{100 * average:.1f}"})
    return rows


if __name__ == "__main__":
    main()
