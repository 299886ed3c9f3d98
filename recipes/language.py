"""Methods and rules on one recipe for a language model: run each, and write one table.

    python recipes/language.py recipes/language/standard_order1.yaml --folder FOLDER

Each order has a seed of its own, which chooses the examples and the first weights. Adapters of
`isolated` are then combined by several rules, which need no training. Runs that exist already
under `runs` are continued, and rules that were measured are not measured again.
The table goes to recipes/results/language_<recipe>.csv: a row for each method, rule and order,
after the last task. Rows of methods and orders that were not asked for stay in it. Means over the
orders and the reduction of the gap go to the terminal.

With `--rates`, each method learns the first two tasks of the first of the orders at several
learning rates instead. The scores on validation examples go to language_<recipe>_rates.csv. Where
this file has a method, the rate with the best score is used from then on.

With `--costs`, each method learns the first of the orders on fewer examples instead. The CPU time
of its steps, beside `sequential`, and what it stores go to language_<recipe>_costs.csv.
"""

import argparse
import json
import statistics
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from common import measure_all, rows_of, run_plan, stored_bytes, write_over

from perdure import Backbone, Recipe, Run
from perdure.benchmarks.standard_cl import ORDERS
from perdure.evaluation import metrics
from perdure.evaluation.posterior import describe
from perdure.evaluation.score import TASK_IDS
from perdure.runs.resume import restored
from perdure.runs.state import read
from perdure.sweeps.first_tasks import plan_of, validation_score

Row = dict[str, str]

SEQUENTIAL = "method=sequential"
# What is new since late 2025: see recipes/README.md.
NEW: dict[str, list[str]] = {
    "weight_space, fisher": ["method={name: weight_space, importance: fisher}"],
    "weight_space, past": ["method={name: weight_space, importance: past}"],
    "masked_target": ["method={name: masked_target, method: sequential}"],
    "entropy weights": [
        "method={name: masked_target, method: sequential, strength: 0, token_weights: entropy}",
    ],
    "slow_adapter": ["method={name: slow_adapter, method: sequential, decay: 0.8}"],
    "muon": [SEQUENTIAL, "training.optimizer=muon"],
    "lora_muon": [SEQUENTIAL, "training.optimizer=lora_muon"],
    # Of about the size and the scale of rank 8 on query and value.
    "feed-forward": [
        "method={name: sequential, rank: 2, alpha: 4}",
        "method.target_modules=[gate_proj, up_proj, down_proj]",
    ],
    "replay, 1 %": ["method={name: replay, method: sequential, share: 0.01}"],
    "replay, 10 %": ["method={name: replay, method: sequential, share: 0.1}"],
    "replay of surprises, 1 %": [
        "method={name: replay, method: sequential, share: 0.01, strategy: surprise}",
    ],
    # With the decay of `slow_adapter` above.
    "SuRe, 1 %": [
        "method={name: slow_adapter, method: {name: replay, method: sequential}, decay: 0.8}",
        "method.method.share=0.01",
        "method.method.strategy=surprise",
    ],
    "replay on policy, 1 %": [
        "method={name: replay, method: sequential, share: 0.01, source: on_policy}",
    ],
    "replay on policy, 10 %": [
        "method={name: replay, method: sequential, share: 0.1, source: on_policy}",
    ],
    # Of label words only the right one scores, so that the above equals plain replay there.
    "replay on policy by likelihood, 10 %": [
        "method={name: replay, method: sequential, share: 0.1, source: on_policy}",
        "method.select=likelihood",
    ],
    "replay of its own, 1 %": [
        "method={name: replay, method: sequential, share: 0.01, source: own}",
    ],
    "replay of its own, 10 %": [
        "method={name: replay, method: sequential, share: 0.1, source: own}",
    ],
}
REPLAYS = ("replay", "SuRe")
"""The names of `replay` and its variants begin with one of these."""
# Each method's settings, as for `--set`. The strengths of EWC and LwF, and the sparsity of N-LoRA,
# are the best of three trials of `perdure tune` on the first two tasks of order 1.
METHODS: dict[str, list[str]] = {
    "isolated, fresh": ["method=isolated"],
    "sequential": [SEQUENTIAL],
    "inflora": ["method={name: inflora, tasks: TASKS}"],
    "o_lora": ["method=o_lora"],
    "isolated, previous": ["method={name: isolated, start: previous}"],
    # SLAO as published.
    "isolated, orthogonal": ["method={name: isolated, start: orthogonal}", "rule=slao"],
    "inc_lora": ["method=inc_lora"],
    "joint": ["method=joint", "evaluation.steps=last"],
    "sequential, low rate": [SEQUENTIAL, "training.learning_rate=3.0e-3"],
    "ewc": ["method={name: ewc, strength: 581000}"],
    "lwf": ["method={name: lwf, strength: 3.54}"],
    "replay": ["method={name: replay, method: sequential, per_class: 1}"],
    "n_lora": ["method={name: n_lora, sparsity: 3.82e-4}"],
    "sd_lora": ["method=sd_lora"],
    # With the coefficients that were tuned on the demo (methods_priors.yaml), and the learning
    # rates from there, times the quotient of the rates of `sequential` here and there.
    "vcl": ["method={name: vcl, beta: 1.0e-3}", "training.learning_rate=8.0e-3"],
    "td_vcl": [
        "method={name: td_vcl, n: 2, kept: 40, beta: 1.0e-3}",
        "training.learning_rate=8.0e-3",
    ],
    "bgd": [
        "method={name: bgd, samples: 2, initial_sigma: 1.84e-2}",
        "training.learning_rate=5.3e-3",
    ],
    "badam": [
        "method={name: badam, samples: 2, initial_sigma: 1.08e-2}",
        "training.learning_rate=1.2e-3",
    ],
    **NEW,
    # Before anything is learned: 15 examples of each task are trained on afterwards, to no use.
    "zero-shot": [
        "method=sequential",
        "stream.train=15",
        "evaluation.future=true",
        "evaluation.steps=none",
    ],
}
# Beside the recipe's own rule, on the adapters of `isolated`. λ is searched on validation examples.
SEARCHED = ("task_arithmetic", ["scale=search"])
RULES: dict[str, list[tuple[str, list[str]]]] = {
    "isolated, fresh": [
        ("oracle", []),
        SEARCHED,
        *[(name, []) for name in ("ties", "tsv", "knots", "opcm", "magmax", "routed", "smile")],
    ],
    "isolated, previous": [("oracle", []), SEARCHED, ("slao", [])],
}
SEEDS = {f"order{number}": number - 1 for number in range(1, 7)}
"""The orders of O-LoRA, and the seed of each, which also chooses its examples."""
RATES = ("1.5e-3", "3.0e-3", "6.0e-3")
COUNTED = {
    "stream.train": 40,
    "stream.validation": 8,
    "stream.test": 8,
    "evaluation.steps": "none",
    "evaluation.general": "false",
}
"""Five steps a task, to see what a method costs beside another. It measures nothing."""
UNTIMED = ("sequential, low rate", "zero-shot")
"""Methods that cost as much as `sequential`, or learn nothing."""
# Methods that keep no examples, which parameter isolation and combination is compared with.
OTHERS = ("sequential", "sequential, low rate", "inc_lora", "o_lora", "n_lora", "sd_lora", "ewc")
OTHERS += ("lwf", "inflora", *[name for name in NEW if not name.startswith(REPLAYS)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--folder", help="The data's folder; by default they come from the hub.")
    parser.add_argument(
        "--orders", nargs="+", default=["order1", "order2", "order3"], choices=SEEDS
    )
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--rules", nargs="+", help="Only these rules, beside the recipe's own.")
    parser.add_argument("--runs", type=Path, default=Path("runs/language"))
    parser.add_argument("--set", nargs="+", default=[], help="Further settings, for all runs.")
    parser.add_argument("--table", help="The table's name; by default the recipe's.")
    parser.add_argument("--table-only", action="store_true", help="Run nothing.")
    parser.add_argument("--costs", action="store_true", help="Only measure time and storage.")
    parser.add_argument("--rates", action="store_true", help="Only compare learning rates.")
    parser.add_argument("--rates-of", help="The recipe whose rates are used; by default RECIPE's.")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.costs:
        costs(arguments)
    elif arguments.rates:
        compare_rates(arguments)
    else:
        if not arguments.table_only:
            learn_all(arguments)
        write_table(arguments)


def write_table(arguments: argparse.Namespace) -> None:
    """Write the rows of all runs there are, and print their means."""
    rows = []
    for order in arguments.orders:
        for name in arguments.methods:
            folder = folder_of(arguments, name, order)
            if (folder / "scores.csv").is_file():
                rows += table(folder, name, order)
    name = arguments.table or arguments.recipe.stem
    results = Path(__file__).parent / "results" / f"language_{name}.csv"
    rows = write_over(results, rows, key=("method", "rule", "order"))
    show(rows)
    show_gaps(rows)


def learn_all(arguments: argparse.Namespace) -> None:
    """Learn each order by each method; all runs of an order share the frozen features."""
    backbone = Recipe.read(arguments.recipe).make_backbone()
    for order in arguments.orders:
        for name in arguments.methods:
            learn(arguments, backbone, name, order)


def learn(arguments: argparse.Namespace, backbone: Backbone, name: str, order: str) -> None:
    """Learn a stream by a method; for `isolated` measure the other rules as well."""
    folder = folder_of(arguments, name, order)
    started = time.process_time()
    recipe = Recipe.read(arguments.recipe, settings_of(arguments, name, order))
    run_plan(recipe.plan(recipe.make_stream(), backbone), recipe, folder)
    print(f"{order} {name}: {time.process_time() - started:.0f} s of CPU time", flush=True)
    if name in RULES:
        rules = arguments.rules or [rule for rule, _ in RULES[name]]
        measure_all(Run(folder), [rule for rule in RULES[name] if rule[0] in rules])


def settings_of(arguments: argparse.Namespace, name: str, order: str) -> list[str]:
    """Return the settings of a method and an order, beside those of the recipe."""
    tasks = len(ORDERS[order].split())
    seed = SEEDS[order]
    settings = [f"stream.order={order}", f"name={name}, {order}"]
    settings += [f"seed={seed}", f"stream.seed={seed}"]
    settings += [setting.replace("TASKS", str(tasks)) for setting in METHODS[name]]
    settings += best_rate(arguments, name)
    if arguments.folder:
        settings.append(f"stream.folder={arguments.folder}")
    return [*settings, *arguments.set]


def best_rate(arguments: argparse.Namespace, name: str) -> list[str]:
    """Return the setting of a method's best learning rate, or nothing if none was measured.

    Variants of `replay`, SuRe among them, were not tried at rates of their own, and use its best.
    """
    rows = rows_of(rates_file(arguments.rates_of or arguments.recipe.stem))
    measured = "replay" if name.startswith(REPLAYS) else name
    trials = [row for row in rows if row["method"] == measured]
    if not trials:
        return []
    best = max(trials, key=lambda row: float(row["none"]))
    return [f"training.learning_rate={best['learning_rate']}"]


def rates_file(recipe: str) -> Path:
    return Path(__file__).parent / "results" / f"language_{recipe}_rates.csv"


def folder_of(arguments: argparse.Namespace, name: str, order: str) -> Path:
    return arguments.runs / f"{order}-{folder_name(name)}"


def folder_name(method: str) -> str:
    return method.replace(", ", "-").replace(" ", "-")


def table(folder: Path, name: str, order: str) -> list[Row]:
    """Return a row for each rule of a run: average accuracies, forgetting, sizes, costs."""
    run = Run(folder)
    if name == "zero-shot":
        return [{"method": name, "rule": "", "order": order} | before_learning(run)]
    scores = run.scores()
    if max((row["step"] for row in scores), default=0) < len(ORDERS[order].split()):
        return []  # the run was stopped before its last measurement
    tasks = [event for event in run.events() if event["event"] == "task"]
    general = [row for row in scores if row["metric"] == "cross_entropy"]
    rows = []
    for rule in dict.fromkeys(row["rule"] for row in scores):
        row = {"method": name, "rule": rule, "order": order}
        for task_id in TASK_IDS:
            matrix = run.matrix(rule, task_id)
            row[task_id] = percent(metrics.average_accuracy(matrix))
            row[f"forgetting, {task_id}"] = percent(metrics.forgetting(matrix))
        values = [score["value"] for score in general if score["rule"] == rule and score["step"]]
        row["cross_entropy"] = f"{values[-1]:.4f}" if values else ""
        row["learned"] = percent(float(np.diag(run.matrix(rule, "given")).mean()))
        row["trained"] = str(max(task["trained"] for task in tasks))
        row["state_bytes"] = str(max(task["state_bytes"] for task in tasks))
        row["seconds"] = f"{sum(task['seconds'] for task in tasks):.0f}"
        rows.append(row)
    return rows


def compare_rates(arguments: argparse.Namespace) -> None:
    """Learn the first two tasks at each rate, and write the scores on validation examples."""
    backbone = Recipe.read(arguments.recipe).make_backbone()
    order = arguments.orders[0]
    rows = []
    for name in arguments.methods:
        for rate in RATES:
            folder = arguments.runs / f"rates-{order}-{folder_name(name)}-{rate}"
            settings = [*settings_of(arguments, name, order), f"training.learning_rate={rate}"]
            settings.append("stream.validation=40")
            recipe = Recipe.read(arguments.recipe, settings)
            plan = plan_of(recipe, 2, backbone=backbone)
            run_plan(plan, recipe, folder)
            system = restored(read(folder), backbone, plan.rule)
            row = {"method": name, "learning_rate": rate}
            for task_id in ("given", "none"):
                row[task_id] = percent(validation_score(system, plan.stream, task_id))
            print(row, flush=True)
            rows.append(row)
    results = rates_file(arguments.recipe.stem)
    write_over(results, rows, key=("method", "learning_rate"))


def costs(arguments: argparse.Namespace) -> None:
    """Learn a few examples by each method, and write what that costs beside `sequential`."""
    backbone = Recipe.read(arguments.recipe).make_backbone()
    order = arguments.orders[0]
    # The frozen features, which the task posterior needs whatever the method is.
    for task in small(arguments, "sequential", order).make_stream():
        describe(backbone, backbone.encode(task.rows("train")))
    rows = []
    for name in dict.fromkeys(["sequential", *arguments.methods]):
        if name in UNTIMED:
            continue
        folder = arguments.runs / f"costs-{order}-{folder_name(name)}"
        cached = folder.with_suffix(".json")
        if not cached.is_file():
            recipe = small(arguments, name, order)
            plan = recipe.plan(recipe.make_stream(), backbone)
            started = time.process_time()
            run_plan(plan, recipe, folder)
            cached.write_text(json.dumps(time.process_time() - started))
        seconds = json.loads(cached.read_text())
        stored = stored_bytes(Run(folder))
        rows.append({"method": name, "seconds": f"{seconds:.1f}", "stored_bytes": str(stored)})
        beside = seconds / float(rows[0]["seconds"])
        print(f"{name}  {beside:.2f} × sequential  {stored / 1e6:.1f} MB", flush=True)
    results = Path(__file__).parent / "results" / f"language_{arguments.recipe.stem}_costs.csv"
    write_over(results, rows, key=("method",))


def small(arguments: argparse.Namespace, name: str, order: str) -> Recipe:
    """Return the recipe of a method on few examples."""
    few = [f"{name}={value}" for name, value in COUNTED.items()]
    return Recipe.read(arguments.recipe, [*settings_of(arguments, name, order), *few])


def before_learning(run: Run) -> Row:
    """Return the averages over tasks before the first one is learned."""
    before = [score for score in run.scores() if score["step"] == 0]
    row = {}
    for task_id in TASK_IDS:
        values = []
        for score in before:
            if score["task_id"] == task_id and metrics.is_score(score):
                values.append(score["value"])
        row[task_id] = percent(statistics.mean(values)) if values else ""
    text = [score["value"] for score in before if score["metric"] == "cross_entropy"]
    return row | {"cross_entropy": f"{text[0]:.4f}"}


def percent(value: float) -> str:
    return "" if np.isnan(value) else f"{100 * value:.2f}"


def show(rows: Sequence[Row]) -> None:
    """Print the mean over orders of each method and rule in Markdown, best `none` first."""
    columns = (*TASK_IDS, "forgetting, given", "forgetting, none", "learned", "cross_entropy")
    print_row(["method", "rule", *columns, "orders"])
    print_row(["---"] * (len(columns) + 3))
    keys = dict.fromkeys((row["method"], row["rule"]) for row in rows)
    means = {key: statistics.mean(values_of(rows, key, "none") or [0.0]) for key in keys}
    for key in sorted(means, key=means.__getitem__, reverse=True):
        cells = list(key)
        for column in columns:
            values = values_of(rows, key, column)
            cells.append(spread(values, 2 if column == "cross_entropy" else 1) if values else "–")
        print_row([*cells, str(len(values_of(rows, key, "given")))])


def print_row(cells: Sequence[str]) -> None:
    print("|", " | ".join(cells), "|")


def values_of(rows: Sequence[Row], key: tuple[str, str], column: str) -> list[float]:
    """Return a method's and a rule's values of a column, one for each order that has it."""
    own = [row for row in rows if (row["method"], row["rule"]) == key]
    return [float(row[column]) for row in own if row.get(column)]


def spread(values: Sequence[float], digits: int = 1) -> str:
    mean = f"{statistics.mean(values):.{digits}f}"
    return f"{mean} ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else mean


def show_gaps(rows: Sequence[Row]) -> None:
    """Print how much of the gap to an upper bound each combination of adapters closes.

    The accuracies are those without the way to know the task; the bounds are joint training, and
    each task's own adapter with the task given. In an order in which the lower end reaches the
    bound, there is no gap: its share is nan and left out of the mean.
    """
    for bound, column in ((("joint", "last"), "none"), (("isolated, fresh", "oracle"), "given")):
        for other in ("the best of an order", *OTHERS):
            reductions = gaps(rows, bound, column, other)
            for key, values in reductions.items():
                shares = [value for value in values if not np.isnan(value)]
                share = spread(shares) if shares else "nan"
                print("gap from", other, "to", *bound, "closed by", *key, share, values)


def gaps(
    rows: Sequence[Row], bound: tuple[str, str], column: str, other: str
) -> dict[tuple[str, str], list[float]]:
    """Return the share of the gap that each combination closes, in percent, for each order.

    Parameters
    ----------
    bound, column
        The method and the rule of the upper bound, and the column of its accuracy.
    other
        The method at the lower end of the gap, or the best of an order.
    """
    reductions: dict[tuple[str, str], list[float]] = {}
    for order in dict.fromkeys(row["order"] for row in rows):
        by_key = {(row["method"], row["rule"]): row for row in rows if row["order"] == order}
        lower = {key[0]: float(row["none"]) for key, row in by_key.items() if key[0] in OTHERS}
        lowest = lower.get(other) if other in OTHERS else max(lower.values(), default=None)
        if bound not in by_key or lowest is None:
            continue
        upper = float(by_key[bound][column])
        for key, row in by_key.items():
            if key[0].startswith("isolated") and row["none"] and key[1] != "oracle":
                reduction = metrics.gap_reduction(float(row["none"]), lowest, upper)
                reductions.setdefault(key, []).append(round(100 * reduction, 1))
    return reductions


if __name__ == "__main__":
    main()
