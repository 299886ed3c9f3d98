"""Every method on one recipe: tune each on the first tasks with the same budget, run all seeds, write one table.

    python recipes/methods.py recipes/methods_demo.yaml recipes/methods_mnist.yaml --seeds 0 1 2

Tuned are the learning rate and each method's main coefficient (`perdure tune`), on the first two tasks of the first seed.
A seed is that of the examples, of the training, and of the order of Split MNIST's classes. What is there already under
`runs/methods` is taken up. The table goes to recipes/results/<recipe>.csv and, as means over the seeds, to the terminal.

Time is CPU time of learning all tasks (one thread, the frozen features known already), beside that of `sequential`.
"""

import argparse
import csv
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from perdure import Backbone, Evaluation, Recipe, Rule, Run, TaskStream, metrics, run_files
from perdure.evaluate import TASK_IDS
from perdure.measure import measure
from perdure.restore import restore
from perdure.run import begin, go_on
from perdure.stream import SPLITS
from perdure.task_id import describe
from perdure.tune import Protocol, tune

FULL = {"training.learning_rate": "1.0e-4"}
VARIANTS: dict[str, dict[str, Any]] = {
    "sequential": {"method": "sequential"},
    "sequential, full": {"method": "{name: sequential, peft: full}", **FULL},
    "ewc": {"method": "ewc"},
    "si": {"method": "si"},
    "mas": {"method": "mas"},
    "lwf": {"method": "lwf"},
    "inc_lora": {"method": "inc_lora"},
    "o_lora": {"method": "o_lora"},
    "n_lora": {"method": "n_lora"},
    "sd_lora": {"method": "sd_lora"},
    "inflora": {"method": "{name: inflora, tasks: 5}"},
    "isolated (PIC)": {"method": "isolated"},
    "slca": {"method": "{name: sequential, peft: full}", **FULL, "training.alignment": "{}"},
    "replay of sequential": {"method": "{name: replay, method: sequential, per_class: 5}"},
    "ncm": {"method": "ncm"},
    "lda": {"method": "lda"},
    "ranpac": {"method": "{name: ranpac, features: 1000}"},
    "joint": {"method": "joint"},
    "joint, full": {"method": "{name: joint, peft: full}", **FULL},
}
"""Settings beside the recipe's. `slca` is full fine-tuning with a slow backbone and aligned heads."""
OF_DINOV2 = {"inflora": {"method.energy": "features"}}
"""As in inflora_mnist.yaml, where the reason stands."""
ORACLE = "isolated, oracle"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipes", type=Path, nargs="+")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS))
    parser.add_argument("--trials", type=int, default=5)
    parser.add_argument("--runs", type=Path, default=Path("runs/methods"))
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for path in arguments.recipes:
        rows, backbone = [], Recipe.read(path).make_backbone()
        for seed in arguments.seeds:
            stream = warmed(_recipe(path, "sequential", seed).make_stream(), backbone)
            for variant in arguments.variants:
                place = arguments.runs / path.stem / variant.replace(" ", "-").replace(",", "")
                settings = tuned(path, variant, place, arguments.seeds[0], arguments.trials, backbone)
                recipe = _recipe(path, variant, seed, settings)
                rows += measured(recipe, variant, place.with_name(f"{place.name}-{seed}"), stream, backbone)
                print({key: value for key, value in rows[-1].items() if value}, flush=True)
        write(arguments.results / f"{path.stem}.csv", rows)
        print(over_seeds(rows))


def _recipe(path: Path, variant: str, seed: int, settings: tuple[str, ...] = ()) -> Recipe:
    own, order = VARIANTS[variant], {}
    if "split_mnist" in path.read_text():
        own, order = own | OF_DINOV2.get(variant, {}), {"stream.order_seed": seed}
    return Recipe.read(
        path, [f"{name}={value}" for name, value in {**own, "seed": seed, **order}.items()] + [*settings]
    )


def warmed(stream: TaskStream, backbone: Backbone) -> TaskStream:
    """With the frozen features of all splits known, which all methods use alike."""
    backbone._encoded.clear()
    for task in stream:
        for split in SPLITS:
            describe(backbone, backbone.encode(task.rows(split)))
    return stream


FOUND: dict[Path, tuple[str, ...]] = {}


def tuned(path: Path, variant: str, place: Path, seed: int, trials: int, backbone: Backbone) -> tuple[str, ...]:
    """The settings that were best on the first tasks; none where there is nothing to tune."""
    recipe = _recipe(path, variant, seed)
    if not recipe.make_method().trains and recipe.make_method().tuned is None:
        return ()
    if place not in FOUND:
        found = tune(recipe, place.with_name(f"{place.name}-tune"), protocol=Protocol(trials=trials), backbone=backbone)
        FOUND[place] = tuple(f"{name}={value}" for name, value in found.best["settings"].items())
    return FOUND[place]


def measured(recipe: Recipe, variant: str, place: Path, stream: TaskStream, backbone: Backbone) -> list[dict[str, Any]]:
    """A row for the recipe's rule, and for PIC one for the oracle: learned and measured now, or before."""
    cached = place.with_suffix(".json")
    if cached.exists():
        return json.loads(cached.read_text())
    plan = recipe.plan(stream, backbone)
    plan = replace(plan, evaluation=Evaluation(steps="none"))
    started = time.process_time()
    results = go_on(begin(place, recipe.resolved(plan)), plan, recipe.resolved(plan))
    seconds = time.process_time() - started
    rules = {variant: plan.rule} | ({ORACLE: Rule(name="oracle")} if variant == "isolated (PIC)" else {})
    rows = [row(results, name, rule, recipe, stream, backbone, seconds) for name, rule in rules.items()]
    cached.write_text(json.dumps(rows))
    return rows


def row(
    results: Run, name: str, rule: Rule, recipe: Recipe, stream: TaskStream, backbone: Backbone, seconds: float
) -> dict[str, Any]:
    learned = restore(results, backbone, stream)
    for step in range(1, len(learned) + 1):
        measure(results, learned[:step], stream, backbone, rule, evaluation=Evaluation(), own=name != ORACLE)
    tasks = [event for event in results.events() if event["event"] == "task"]
    sizes = [file["size"] for place in results.task_folders().values() for file in run_files.manifest(place).values()]
    found: dict[str, Any] = {"variant": name, "rule": rule.label, "seed": recipe.seed}
    found |= {"learning_rate": recipe.make_training().learning_rate if recipe.make_method().trains else ""}
    found |= {"coefficient": coefficient(recipe)}
    for metric in (metrics.average_accuracy, metrics.forgetting):
        for way in TASK_IDS:
            found[f"{metric.__name__}, {way}"] = f"{100 * metric(results.matrix(rule.label, way)):.2f}"
    found |= {"trained": max(task["trained"] for task in tasks), "stored_bytes": sum(sizes)}
    return found | {"state_bytes": tasks[-1]["state_bytes"], "cpu_seconds": round(seconds, 1)}


def coefficient(recipe: Recipe) -> str:
    """The method's main coefficient and its value."""
    method: Any = recipe.make_method()
    method = getattr(method, "method", method)
    return f"{method.tuned.name}={getattr(method, method.tuned.name):g}" if method.tuned else ""


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def over_seeds(rows: list[dict[str, Any]]) -> str:
    """A Markdown table of mean ± standard deviation over the seeds."""
    columns = ["given", "posterior", "concatenated", "forgetting, given", "forgetting, concatenated"]
    lines = [f"| method | {' | '.join(columns)} | trained | stored | time |", "|---" * (len(columns) + 4) + "|"]
    seconds = {row["seed"]: float(row["cpu_seconds"]) for row in rows if row["variant"] == "sequential"}
    for variant in dict.fromkeys(row["variant"] for row in rows):
        own = [row for row in rows if row["variant"] == variant]
        names = [name if name.startswith("forgetting") else f"average_accuracy, {name}" for name in columns]
        cells = [_spread([float(row[name]) for row in own]) for name in names]
        sizes = [_thousands(own[-1]["trained"]), f"{float(own[-1]['stored_bytes']) / 1e6:.1f} MB"]
        times = [float(row["cpu_seconds"]) / seconds[row["seed"]] for row in own if row["seed"] in seconds]
        lines.append(f"| {variant} | {' | '.join([*cells, *sizes, f'{np.mean(times):.2f}' if times else '–'])} |")
    return "\n".join([*lines, ""])


def _spread(values: list[float]) -> str:
    return f"{np.mean(values):.1f} ± {np.std(values, ddof=1) if len(values) > 1 else 0:.1f}"


def _thousands(number: Any) -> str:
    return f"{int(number) / 1e3:,.0f} k" if int(number) >= 1000 else str(number)


if __name__ == "__main__":
    main()
