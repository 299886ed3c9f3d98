"""Methods and rules on one recipe for a language model: run each, and write one table.

    python recipes/language.py recipes/language/standard_order1.yaml --folder FOLDER --orders order1

Every method has the recipe's own settings: nothing is tuned. Adapters of `isolated` are then
combined by several rules, which need no training. Runs that are there already under `runs` are
taken up, and rules that were measured are not measured again.
The table goes to recipes/results/language_<recipe>.csv: a row for each method, rule and order,
after the last task. Means over the orders go to the terminal.
"""

import argparse
import statistics
import time
from pathlib import Path

from common import measure_all, write

from perdure import Recipe, Run
from perdure.evaluation import metrics
from perdure.evaluation.score import TASK_IDS

METHODS = {
    "sequential": "sequential",
    "inc_lora": "inc_lora",
    "o_lora": "o_lora",
    "n_lora": "n_lora",
    "sd_lora": "sd_lora",
    "ewc": "ewc",
    "lwf": "lwf",
    "replay": "{name: replay, method: sequential, per_class: 1}",
    "inflora": "{name: inflora, tasks: 4}",
    "isolated, fresh": "isolated",
    "isolated, previous": "{name: isolated, start: previous}",
    "joint": "joint",
}
# Beside the recipe's own rule, on the adapters of `isolated`.
RULES = ("tsv", "ties", "opcm", "knots", "magmax", "routed", "smile")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--folder", help="The data's folder; by default they come from the hub.")
    parser.add_argument("--orders", nargs="+", default=["order1", "order2", "order3"])
    parser.add_argument("--methods", nargs="+", default=list(METHODS))
    parser.add_argument("--runs", type=Path, default=Path("runs/language"))
    parser.add_argument("--table-only", action="store_true", help="Run nothing.")
    arguments = parser.parse_args()
    rows = []
    for order in arguments.orders:
        for name in arguments.methods:
            folder = arguments.runs / f"{order}-{name.replace(', ', '-')}"
            if not arguments.table_only:
                learn(arguments, folder, name, order)
            if (folder / "scores.csv").is_file():
                rows += table(folder, name, order)
    results = Path(__file__).parent / "results" / f"language_{arguments.recipe.stem}.csv"
    write(results, rows)
    show(rows)


def learn(arguments: argparse.Namespace, folder: Path, name: str, order: str) -> None:
    """Learn a stream by a method; for `isolated` measure the other rules as well."""
    settings = [f"method={METHODS[name]}", f"stream.order={order}", f"name={name}, {order}"]
    if arguments.folder:
        settings.append(f"stream.folder={arguments.folder}")
    started = time.process_time()
    Recipe.read(arguments.recipe, settings).run(folder)
    print(f"{order} {name}: {time.process_time() - started:.0f} s of CPU time", flush=True)
    if name.startswith("isolated"):
        measure_all(Run(folder), [(rule, []) for rule in RULES])


def table(folder: Path, name: str, order: str) -> list[dict[str, str]]:
    """Return a row for each rule of a run: average accuracies, forgetting, and sizes."""
    run = Run(folder)
    tasks = [event for event in run.events() if event["event"] == "task"]
    if len(run.tasks) < 2:
        return []
    rows = []
    for rule in dict.fromkeys(row["rule"] for row in run.scores()):
        row = {"method": name, "rule": rule, "order": order}
        for task_id in TASK_IDS:
            matrix = run.matrix(rule, task_id)
            row[task_id] = f"{100 * metrics.average_accuracy(matrix):.2f}"
            row[f"forgetting, {task_id}"] = f"{100 * metrics.forgetting(matrix):.2f}"
        row["trained"] = str(max(task["trained"] for task in tasks))
        row["seconds"] = f"{sum(task['seconds'] for task in tasks):.0f}"
        rows.append(row)
    return rows


def show(rows: list[dict[str, str]]) -> None:
    """Print the mean over orders of each method and rule, with the deviation."""
    for key in dict.fromkeys((row["method"], row["rule"]) for row in rows):
        own = [row for row in rows if (row["method"], row["rule"]) == key]
        cells = []
        for task_id in TASK_IDS:
            values = [float(row[task_id]) for row in own]
            spread = statistics.stdev(values) if len(values) > 1 else 0.0
            cells.append(f"{task_id} {statistics.mean(values):.1f} ± {spread:.1f}")
        print(*key, *cells, f"({len(own)} orders)", sep="  ")


if __name__ == "__main__":
    main()
