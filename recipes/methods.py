"""Every method on one recipe: tune each on the first tasks with the same budget, run all seeds,
write one table.

    python recipes/methods.py recipes/methods_demo.yaml recipes/methods_mnist.yaml --seeds 0 1 2

Tuned are the learning rate and each method's main coefficient (`perdure tune`), on the first two
tasks of the first seed. A seed is that of the examples, of the training, and of the order of Split
MNIST's classes. What is there already under `runs/methods` is taken up.
The table goes to recipes/results/<recipe>.csv and, as means over the seeds, to the terminal.
Rows of variants and seeds that were not asked for stay in it.

Time is the process's time of learning all tasks with fewer examples (one thread, the frozen
features known already), beside that of `sequential`. It is measured last, by itself,
so that nothing else need run then; `--no-times` leaves it.
"""

import argparse
import json
import re
import shutil
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import run_plan, stored_bytes, write_over

from perdure import Backbone, Evaluation, Recipe, Rule, Run
from perdure.data.task import SPLITS, TaskStream
from perdure.evaluation import metrics
from perdure.evaluation.measure import measure
from perdure.evaluation.posterior import describe
from perdure.evaluation.score import TASK_IDS
from perdure.runs.resume import restored
from perdure.runs.state import read
from perdure.runs.writer import writing
from perdure.settings import named
from perdure.sweeps.tune import tune
from perdure.sweeps.tuning import Protocol

FULL = {"training.learning_rate": "1.0e-4"}
DESCENT = {"training.learning_rate": "3.0e-2", "training.head_learning_rate": "3.0e-2"}
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
    "weight_space, fisher": {"method": "{name: weight_space, importance: fisher}"},
    "weight_space, past": {"method": "{name: weight_space, importance: past}"},
    "masked_target of sequential": {"method": "{name: masked_target, method: sequential}"},
    "slow_adapter of sequential": {"method": "{name: slow_adapter, method: sequential}"},
    "sequential, muon": {"method": "sequential", "training.optimizer": "muon"},
    "sequential, lora_muon": {"method": "sequential", "training.optimizer": "lora_muon"},
    "inc_lora, muon": {"method": "inc_lora", "training.optimizer": "muon"},
    "sequential, entropy weights": {
        "method": "{name: masked_target, method: sequential, strength: 0, token_weights: entropy}"
    },
    # Of about the size and the scale of rank 8 on query and value.
    "sequential, feed-forward": {
        "method": "{name: sequential, rank: 3, alpha: 6}",
        "method.target_modules": r".*(intermediate|layer\.\d+\.output)\.dense",
    },
    "sequential, rank 2": {"method": "{name: sequential, rank: 2}"},
    "sequential, rank 32": {"method": "{name: sequential, rank: 32}"},
    "inflora": {"method": "{name: inflora, tasks: 5}"},
    "isolated (PIC)": {"method": "isolated"},
    "slca": {"method": "{name: sequential, peft: full}", **FULL, "training.alignment": "{}"},
    "replay of sequential": {"method": "{name: replay, method: sequential, per_class: 5}"},
    "ncm": {"method": "ncm"},
    "lda": {"method": "lda"},
    "ranpac": {"method": "{name: ranpac, features: 1000}"},
    "joint": {"method": "joint"},
    "joint, full": {"method": "{name: joint, peft: full}", **FULL},
    "vcl": {"method": "vcl"},
    "td_vcl": {"method": "{name: td_vcl, n: 2, kept: 40}"},
    "bgd": {"method": "{name: bgd, samples: 2}", **DESCENT},
    "badam": {"method": "{name: badam, samples: 2}"},
}
"""Settings beside the recipe's.

`slca` is full fine-tuning with a slow backbone and aligned heads. `bgd` follows the gradient
itself, not Adam's direction, and so needs larger learning rates.
"""
OF_DINOV2 = {"inflora": {"method.energy": "features"}}
"""As in inflora_mnist.yaml, where the reason stands."""
ORACLE = "isolated, oracle"
TIMED = {"stream.train": 40, "stream.validation": 40, "stream.test": 20}
"""Examples of each task where time is measured: what a method costs beside another does not depend
on how many.
"""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("recipes", type=Path, nargs="+")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS))
    parser.add_argument("--trials", type=int, default=8)
    parser.add_argument("--no-times", action="store_true")
    parser.add_argument("--runs", type=Path, default=Path("runs/methods"))
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for path in arguments.recipes:
        comparison = Comparison(
            path, arguments.runs / path.stem, arguments.seeds[0], arguments.trials
        )
        rows = []
        for seed in arguments.seeds:
            comparison.begin(seed)
            for variant in arguments.variants:
                rows += comparison.rows(variant, seed)
                print({key: value for key, value in rows[-1].items() if value}, flush=True)
        if not arguments.no_times:
            times = comparison.times(arguments.variants)
            rows = [row | {"time": times[row["variant"]]} for row in rows]
        table = arguments.results / f"{path.stem}.csv"
        print(over_seeds(write_over(table, rows, key=("variant", "seed"))))


class Comparison:
    """All methods on one recipe, with one backbone, so that the frozen features are computed once a
    seed.
    """

    def __init__(self, path: Path, runs: Path, first_seed: int, trials: int):
        self.path, self.runs, self.first_seed, self.trials = path, runs, first_seed, trials
        self.backbone: Backbone = Recipe.read(path).make_backbone()
        self.found: dict[str, list[str]] = {}

    def begin(self, seed: int) -> None:
        """Make the stream of a seed, and the frozen features of all its splits,
        which all methods use alike.
        """
        self.backbone._encoded.clear()
        self.stream = self.recipe("sequential", seed).make_stream()
        self.describe(self.stream)

    def describe(self, stream: TaskStream) -> None:
        for task in stream:
            for split in SPLITS:
                describe(self.backbone, self.backbone.encode(task.rows(split)))

    def recipe(self, variant: str, seed: int, settings: Sequence[str] = ()) -> Recipe:
        values = VARIANTS[variant] | {"seed": seed}
        if named(Recipe.read(self.path).stream, "stream")[0] == "split_mnist":
            values |= OF_DINOV2.get(variant, {}) | {"stream.order_seed": seed}
        return Recipe.read(
            self.path, [*(f"{name}={value}" for name, value in values.items()), *settings]
        )

    def place(self, variant: str, what: object) -> Path:
        """Where what is done with a variant has its folder."""
        name = re.sub(r"\W+", "-", variant).strip("-")
        return self.runs / f"{name}-{what}"

    def learn(self, place: Path, recipe: Recipe, stream: TaskStream) -> Run:
        """Learn all tasks anew, and measure nothing."""
        plan = replace(recipe.plan(stream, self.backbone), evaluation=Evaluation(steps="none"))
        shutil.rmtree(place, ignore_errors=True)
        return run_plan(plan, recipe, place)

    def tuned(self, variant: str) -> list[str]:
        """The settings that were best on the first tasks; none where there is nothing to tune."""
        recipe = self.recipe(variant, self.first_seed)
        if not recipe.make_method().trains and recipe.make_method().tuned is None:
            return []
        if variant not in self.found:
            found = tune(
                recipe,
                self.place(variant, "tune"),
                protocol=Protocol(trials=self.trials),
                backbone=self.backbone,
            )
            self.found[variant] = [
                f"{name}={value}" for name, value in found.best["settings"].items()
            ]
        return self.found[variant]

    def rows(self, variant: str, seed: int) -> list[dict[str, Any]]:
        """A row for the recipe's rule, and for PIC one for the oracle: learned and measured now,
        or before.
        """
        place = self.place(variant, seed)
        if (cached := place.with_suffix(".json")).exists():
            return json.loads(cached.read_text())
        recipe = self.recipe(variant, seed, self.tuned(variant))
        results = self.learn(place, recipe, self.stream)
        rules = {variant: recipe.make_rule()} | (
            {ORACLE: Rule(name="oracle")} if variant == "isolated (PIC)" else {}
        )
        rows = [self.row(results, name, rule, recipe) for name, rule in rules.items()]
        cached.write_text(json.dumps(rows))
        return rows

    def times(self, variants: Sequence[str]) -> dict[str, float]:
        """Time of learning, beside that of `sequential`; PIC's is the oracle's too."""
        self.backbone._encoded.clear()
        small = [f"{name}={value}" for name, value in TIMED.items()]
        stream = self.recipe("sequential", self.first_seed, small).make_stream()
        self.describe(stream)
        seconds = {}
        for variant in dict.fromkeys(["sequential", *variants]):
            place = self.place(variant, "time")
            if not (cached := place.with_suffix(".json")).exists():
                recipe = self.recipe(variant, self.first_seed, small)
                started = time.process_time()
                self.learn(place, recipe, stream)
                cached.write_text(json.dumps(time.process_time() - started))
            seconds[variant] = json.loads(cached.read_text())
        found = {
            variant: round(value / seconds["sequential"], 2) for variant, value in seconds.items()
        }
        return found | {ORACLE: found.get("isolated (PIC)", 1.0)}

    def row(self, results: Run, name: str, rule: Rule, recipe: Recipe) -> dict[str, Any]:
        system = restored(read(results.folder), self.backbone, rule, self.stream)
        with writing(results.folder) as writer:
            for step in range(1, len(system.learned) + 1):
                measurement = measure(system.until(step), self.stream, Evaluation(), recipe.seed)
                writer.measurement(measurement, own=name != ORACLE)
        tasks = [event for event in results.events() if event["event"] == "task"]
        found: dict[str, Any] = {"variant": name, "rule": rule.label, "seed": recipe.seed}
        found |= {
            "learning_rate": recipe.make_training().learning_rate
            if recipe.make_method().trains
            else ""
        }
        found |= {"coefficient": coefficient(recipe)}
        for metric in (metrics.average_accuracy, metrics.forgetting):
            for way in TASK_IDS:
                found[f"{metric.__name__}, {way}"] = (
                    f"{100 * metric(results.matrix(rule.label, way)):.2f}"
                )
        found |= {"trained": max(task["trained"] for task in tasks)}
        found |= {"stored_bytes": stored_bytes(results)}
        return found | {"state_bytes": tasks[-1]["state_bytes"]}


def coefficient(recipe: Recipe) -> str:
    """The method's main coefficient and its value."""
    method: Any = recipe.make_method()
    if method.tuned is None:  # of a method that wraps another, such as replay
        method = getattr(method, "method", method)
    return f"{method.tuned.name}={getattr(method, method.tuned.name):g}" if method.tuned else ""


def over_seeds(rows: list[dict[str, Any]]) -> str:
    """A Markdown table of mean ± standard deviation over the seeds."""
    columns = [
        "given",
        "posterior",
        "none",
        "forgetting, given",
        "forgetting, none",
    ]
    lines = [
        f"| method | {' | '.join(columns)} | trained | stored | time |",
        "|---" * (len(columns) + 4) + "|",
    ]
    for variant in dict.fromkeys(row["variant"] for row in rows):
        own = [row for row in rows if row["variant"] == variant]
        names = [
            name if name.startswith("forgetting") else f"average_accuracy, {name}"
            for name in columns
        ]
        cells = [_spread([float(row[name]) for row in own]) for name in names]
        sizes = [_thousands(own[-1]["trained"]), f"{float(own[-1]['stored_bytes']) / 1e6:.1f} MB"]
        sizes.append(f"{float(own[-1].get('time') or 'nan'):.2f}")
        lines.append(f"| {variant} | {' | '.join([*cells, *sizes])} |")
    return "\n".join([*lines, ""])


def _spread(values: list[float]) -> str:
    return f"{np.mean(values):.1f} ± {np.std(values, ddof=1) if len(values) > 1 else 0:.1f}"


def _thousands(number: Any) -> str:
    return f"{int(number) / 1e3:,.0f} k" if int(number) >= 1000 else str(number)


if __name__ == "__main__":
    main()
