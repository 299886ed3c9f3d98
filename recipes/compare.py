"""Compare methods on one recipe: tune each on validation data with the same budget, then measure it on test data.

    python recipes/compare.py recipes/inflora_cifar100_small.yaml --folder DATA --seeds 0 1 2

Each variant of the recipe (see VARIANTS) is run with each learning rate of RATES on the first seed; the one with the
best average accuracy on the validation splits after the last task is then run on all seeds. A seed is also the order of
the classes, where the stream has one. Runs that are there already are taken as they are. The table goes to
recipes/results/<recipe>.csv: one row per variant and seed.
"""

import argparse
import csv
from pathlib import Path

import numpy as np

from perdure import Recipe, Run, combine, metrics, registry
from perdure.evaluate import TASK_IDS, Evaluator
from perdure.run import restore

LORA = "rank: 10, alpha: 10, target_modules: [k_proj, v_proj, key, value]"
VARIANTS: dict[str, list[str]] = {
    "InfLoRA": [],
    "sequential LoRA": [f"method={{name: sequential, {LORA}}}", "rule=last"],
    "PIC": [f"method={{name: isolated, {LORA}}}", "rule={name: task_arithmetic, scale: 1/n}"],
    "PIC in designed subspaces": ["method.upon=pretrained", "rule={name: task_arithmetic, scale: 1/n}"],
    "InfLoRA, random B": ["method.design=random"],
    "InfLoRA, B from the new task": ["method.design=new_task"],
    "InfLoRA, random B outside the old": ["method.design=orthogonal"],
}
RATES = ("1.0e-3", "3.0e-3", "1.0e-2")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--folder", help="the data, where they are not to come from the hub")
    parser.add_argument("--model", help="the backbone's folder, where it is not to come from the hub")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS))
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    arguments = parser.parse_args()
    common = [f"stream.folder={arguments.folder}"] if arguments.folder else []
    common += [f"backbone.model={arguments.model}"] if arguments.model else []
    rows = []
    for name in arguments.variants:
        settings = [*common, *VARIANTS[name]]
        rate = tuned(arguments.recipe, settings, arguments.runs / slug(arguments.recipe, name), arguments.seeds[0])
        for seed in arguments.seeds:
            results = done(arguments.recipe, [*settings, rate], arguments.runs / slug(arguments.recipe, name), seed)
            rows.append({"variant": name, "seed": seed, "learning_rate": rate.split("=")[1], **scores(results)})
            output = arguments.recipe.parent / "results" / f"{arguments.recipe.stem}.csv"
            output.parent.mkdir(exist_ok=True)
            with output.open("w", newline="") as file:
                writer = csv.DictWriter(file, rows[0], lineterminator="\n")
                writer.writeheader()
                writer.writerows(rows)
            print(rows[-1])


def slug(recipe: Path, variant: str) -> str:
    return f"{recipe.stem}-{''.join(c if c.isalnum() else '-' for c in variant)}"


def tuned(recipe: Path, settings: list[str], folder: Path, seed: int) -> str:
    """The learning rate that is best on validation data."""
    found = {}
    for rate in RATES:
        setting = f"training.learning_rate={rate}"
        results = done(recipe, [*settings, setting], folder, seed)
        found[setting] = validation_accuracy(results)
        print(folder.name, setting, f"validation {found[setting]:.3f}", flush=True)
    return max(found, key=lambda setting: found[setting])


def done(recipe: Path, settings: list[str], folder: Path, seed: int) -> Run:
    """The run with these settings; it is there already, or is made."""
    place = folder.with_name(f"{folder.name}-{settings[-1].split('=')[1]}-{seed}")
    if (place / "scores.csv").is_file():
        return Run(place)
    ordered = "order_seed" in registry.options(
        registry.find("benchmark", str(Recipe.read(recipe, settings).stream["name"]))
    )
    seeds = [f"seed={seed}", *([f"stream.order_seed={seed}"] if ordered else [])]
    return Recipe.read(recipe, [*settings, *seeds]).run(place, quiet=False)


def validation_accuracy(results: Run) -> float:
    """Without the task: all heads concatenated, over all tasks, after the last of them."""
    recipe = Recipe.parse(results.recipe)
    stream, backbone = recipe.make_stream(), recipe.make_backbone()
    learned = restore(results, backbone)
    combined = combine([task.adapter for task in learned], recipe.make_rule())
    evaluator = Evaluator(backbone, stream, stream.names, None)
    found = [evaluator.accuracy(combined, task, ["concatenated"], "validation") for task in stream.names]
    return float(np.mean([accuracy["concatenated"] for accuracy in found]))


def scores(results: Run) -> dict[str, str]:
    """In percent, for each way to know the task: after the last task, and averaged over the steps."""
    found = {}
    for task_id in TASK_IDS:
        R = results.matrix(task_id=task_id)
        found[f"{task_id}_last"] = f"{100 * metrics.average_accuracy(R):.1f}"
        found[f"{task_id}_mean"] = f"{100 * metrics.average_incremental_accuracy(R):.1f}"
    return found


if __name__ == "__main__":
    main()
