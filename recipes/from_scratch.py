"""Compare methods on networks that are trained from scratch: tune each with the same budget, run it
with all seeds, and write one table for each recipe.

    python recipes/from_scratch.py recipes/from_scratch/*.yaml --seeds 0 1 2

The learning rate and the main coefficient of each method are tuned (`perdure tune`) on validation
examples of the first tasks of the first seed. A seed determines the initial weights, the images,
the orders of the pixels (Permuted MNIST) or of the digits (Split MNIST), and the training.
Finished trials and runs in `runs/from_scratch` are reused. The values go to
recipes/results/from_scratch_<recipe>.csv, and means over the seeds to the terminal.
"""

import argparse
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from common import write

from perdure import Backbone, Recipe, Run, Session, combine, learn
from perdure.data.task import TaskStream
from perdure.evaluation import metrics
from perdure.evaluation.system import System
from perdure.runs import story
from perdure.sweeps.tune import tune
from perdure.sweeps.tuning import Protocol

BAYES = "peft: full, samples: 4"
VARIATIONAL = "peft: full, prior_sigma: 0.3, initial_sigma: 0.05, beta: 0.05"
TD = "n: 3, replayed_share: 0.25, kept: 40"
VARIANTS = {
    "sequential": "{name: sequential, peft: full}",
    "ewc": "{name: ewc, peft: full}",
    "si": "{name: si, peft: full}",
    "bgd": f"{{name: bgd, {BAYES}}}",
    "badam": f"{{name: badam, {BAYES}}}",
    "vcl, no coreset": f"{{name: vcl, {VARIATIONAL}}}",
    "vcl": f"{{name: vcl, {VARIATIONAL}, coreset: CORESET}}",
    "td_vcl, n_step": f"{{name: td_vcl, {VARIATIONAL}, {TD}, objective: n_step}}",
    "td_vcl, td": f"{{name: td_vcl, {VARIATIONAL}, {TD}, objective: td}}",
}
CORESET = {"permuted_mnist": "4", "split_mnist": "20"}
"""The examples of each class that are set aside, by recipe: 40 for each task, as `td_vcl` keeps."""
JOINT = "joint"
PROTOCOL = Protocol(tasks=4, trials=5, task_id="none", lowest=0.1, highest=10.0)
METRICS = (metrics.average_accuracy, metrics.forgetting)

Row = dict[str, str | int]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("recipes", type=Path, nargs="+")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--variants", nargs="+", default=[*VARIANTS, JOINT])
    parser.add_argument("--runs", type=Path, default=Path("runs/from_scratch"))
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for path in arguments.recipes:
        runs = arguments.runs / path.stem
        rows: list[Row] = []
        for seed in arguments.seeds:
            comparison = Comparison(path, runs, seed)
            for variant in arguments.variants:
                settings = _tuned(path, runs, variant, arguments.seeds[0])
                rows.append(comparison.row(variant, settings))
                print(rows[-1], flush=True)
            write(arguments.results / f"from_scratch_{path.stem}.csv", rows)
        print(over_seeds(rows))


def recipe_of(path: Path, variant: str, seed: int, settings: list[str] | None = None) -> Recipe:
    """Return the recipe of a variant; joint training uses the settings of `sequential`."""
    method = VARIANTS.get(variant, VARIANTS["sequential"]).replace("CORESET", CORESET[path.stem])
    values = [f"method={method}", f"seed={seed}", *(settings or [])]
    if path.stem == "split_mnist":
        values.append(f"stream.order_seed={seed}")
    return Recipe.read(path, values)


def _tuned(path: Path, runs: Path, variant: str, seed: int) -> list[str]:
    """Return the best settings on the first tasks of a seed."""
    if variant == JOINT:
        variant = "sequential"
    recipe = recipe_of(path, variant, seed)
    place = runs / f"{_file_name(variant)}-tune"
    # A finished search is read, not repeated: creating the stream takes longer than that.
    finished = place.with_suffix(".json")
    if not finished.exists():
        tuning = tune(recipe, place, protocol=PROTOCOL)
        finished.write_text(json.dumps(tuning.best["settings"]))
    best = json.loads(finished.read_text())
    return [f"{name}={value!r}" for name, value in best.items()]


class Comparison:
    """The runs of one seed, which share a stream and a network."""

    def __init__(self, path: Path, runs: Path, seed: int):
        self.path, self.runs, self.seed = path, runs, seed
        self._inputs: tuple[TaskStream, Backbone] | None = None

    def inputs(self) -> tuple[TaskStream, Backbone]:
        """Return the stream and the network, which are created on first use."""
        if self._inputs is None:
            recipe = recipe_of(self.path, "sequential", self.seed)
            stream = recipe.make_stream()
            self._inputs = stream, recipe.make_backbone(stream=stream)
        return self._inputs

    def row(self, variant: str, settings: list[str]) -> Row:
        """Return the results of a run, which takes place unless it is finished."""
        place = self.runs / f"{_file_name(variant)}-{self.seed}"
        finished = place.with_suffix(".json")
        if not finished.exists():
            recipe = recipe_of(self.path, variant, self.seed, settings)
            values = self.joint(recipe) if variant == JOINT else self.learned(recipe, place)
            row: Row = {"variant": variant, "seed": self.seed, "settings": ", ".join(settings)}
            row |= {name: f"{100 * value:.2f}" for name, value in values.items()}
            finished.write_text(json.dumps(row))
        return json.loads(finished.read_text())

    def learned(self, recipe: Recipe, place: Path) -> dict[str, float]:
        """Run a recipe, and return its metrics."""
        plan = recipe.plan(*self.inputs())
        shutil.rmtree(place, ignore_errors=True)
        story.run(replace(plan, recipe=recipe.resolved(plan)), place)
        matrix = Run(place).matrix(plan.rule.label, "none")
        return {metric.__name__: metric(matrix) for metric in METRICS}

    def joint(self, recipe: Recipe) -> dict[str, float]:
        """Train on all tasks together, once, and return the average accuracy."""
        stream, network = self.inputs()
        method = recipe_of(self.path, "sequential", self.seed, ["method.name=joint"]).make_method()
        session = Session(seed=self.seed)
        adapter = learn(network, stream.tasks, method, recipe.make_training(), session=session)
        rule = recipe.make_rule()
        combined = combine([adapter], rule)
        among = {task.name: task.classes for task in stream}
        system = System(network, (), rule)
        accuracies = []
        for task in stream:
            answers = system.answer(task, "test", ["none"], among=among, combined=combined)
            accuracies.append(answers.scores()["none"])
        return {"average_accuracy": sum(accuracies) / len(accuracies), "forgetting": float("nan")}


def _file_name(variant: str) -> str:
    return re.sub(r"\W+", "-", variant)


def over_seeds(rows: list[Row]) -> str:
    """Return a Markdown table of mean ± standard deviation over the seeds."""
    lines = ["| method | average accuracy | forgetting |", "|---|---|---|"]
    for variant in dict.fromkeys(row["variant"] for row in rows):
        cells = []
        for metric in METRICS:
            values = [float(row[metric.__name__]) for row in rows if row["variant"] == variant]
            spread = np.std(values, ddof=1) if len(values) > 1 else 0.0
            cells.append(f"{np.mean(values):.1f} ± {spread:.1f}")
        lines.append(f"| {variant} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
