"""Compare methods on one recipe: tune each on validation data with the same budget,
then measure it on test data.

    python recipes/compare.py recipes/inflora_mnist.yaml --seeds 0 1 2

Each variant of the recipe (see VARIANTS) is run with each of its learning rates on the first seed.
For either way to use the heads (`own`: as each task left its own; `aligned`: all aligned after the
last task, as the recipe's `alignment` says) the rate with the best average accuracy on the
validation splits is then run on all seeds. A seed is also the order of the classes. Runs that are
there already are taken as they are. The table goes to recipes/results/<recipe>.csv:
average accuracy after the last task in percent, for each way to know the task.
"""

import argparse
import csv
from pathlib import Path

import torch
from common import write

from perdure import Alignment, Gaussians, Recipe, Run, align
from perdure.evaluation.score import TASK_IDS, features
from perdure.runs.resume import restored
from perdure.runs.state import read

RATES = ("3.0e-4", "1.0e-3", "3.0e-3")
LORA = "rank: 10, alpha: 10, target_modules: [key, value, k_proj, v_proj]"
# the baseline has more rates, because its best ones lie at the lower end
VARIANTS: dict[str, tuple[list[str], tuple[str, ...]]] = {
    "InfLoRA": ([], RATES),
    "sequential LoRA": (
        [f"method={{name: sequential, {LORA}}}", "rule=last"],
        (*RATES, "1.0e-4", "3.0e-5"),
    ),
    "PIC": (
        [f"method={{name: isolated, {LORA}}}", "rule={name: task_arithmetic, scale: 1/n}"],
        RATES,
    ),
    "PIC in designed subspaces": (
        ["method.upon=pretrained", "rule={name: task_arithmetic, scale: 1/n}"],
        RATES,
    ),
    # ablations, at InfLoRA's rate
    "random": (["method.design=random"], ("1.0e-3",)),
    "new_task": (["method.design=new_task"], ("1.0e-3",)),
    "orthogonal": (["method.design=orthogonal"], ("1.0e-3",)),
    "statistics of 10 %": (["method.statistics_examples=20"], ("1.0e-3",)),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--folder", help="the data, where they are not to come from the hub")
    parser.add_argument("--model", help="the backbone, where it is not to come from the hub")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS))
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    arguments = parser.parse_args()
    common = [f"stream.folder={arguments.folder}"] if arguments.folder else []
    common += [f"backbone.model={arguments.model}"] if arguments.model else []
    rows = []
    for variant in arguments.variants:
        settings, rates = VARIANTS[variant]
        place = arguments.runs / arguments.recipe.stem / variant.replace(" ", "-")

        def measured(
            rate: str, seed: int, settings: list[str] = settings, place: Path = place
        ) -> dict:
            every = [
                *common,
                *settings,
                f"training.learning_rate={rate}",
                f"seed={seed}",
                f"stream.order_seed={seed}",
            ]
            return measure(
                Recipe.read(arguments.recipe, every), place.with_name(f"{place.name}-{rate}-{seed}")
            )

        for heads in ("own", "aligned"):
            first = {rate: measured(rate, arguments.seeds[0]) for rate in rates}
            best = max(rates, key=lambda rate: first[rate]["validation", heads]["none"])
            for seed in arguments.seeds:
                found = measured(best, seed)
                values = {
                    name: f"{100 * value:.1f}" for name, value in found["test", heads].items()
                }
                rows.append(
                    {
                        "variant": variant,
                        "heads": heads,
                        "learning_rate": best,
                        "seed": seed,
                        **values,
                    }
                )
                print(rows[-1], flush=True)
    update(arguments.recipe.parent / "results" / f"{arguments.recipe.stem}.csv", rows)


def update(path: Path, rows: list[dict]) -> None:
    """Rows of variants that were measured now take the place of the old ones."""
    kept = list(csv.DictReader(path.open(newline=""))) if path.is_file() else []
    now = {row["variant"] for row in rows}
    write(path, [*(row for row in kept if row["variant"] not in now), *rows])


CACHE: dict[Path, dict] = {}


def measure(recipe: Recipe, place: Path) -> dict[tuple[str, str], dict[str, float]]:
    """By split and heads: the average accuracy over all tasks after the last,
    for each way to know the task.
    """
    if place in CACHE:
        return CACHE[place]
    alignment = recipe.make_training().alignment or Alignment()
    recipe.training["alignment"] = None
    results = Run(place) if (place / "scores.csv").is_file() else recipe.run(place, quiet=False)
    stream, backbone, rule = recipe.make_stream(), recipe.make_backbone(), recipe.make_rule()
    system = restored(read(results.folder), backbone, rule)
    found = {}
    for heads in ("own", "aligned"):
        if heads == "aligned":
            gaussians = {}
            for step, task in enumerate(
                system.learned, start=1
            ):  # each as it was when the task had just been learned
                rows = backbone.encode(stream[step - 1].rows("train"))
                seen = features(backbone, system.until(step).combined, rows).cpu()
                gaussians[task.name] = Gaussians.of(
                    seen, torch.tensor(rows.labels), len(task.classes)
                )
            align(backbone, gaussians, system.classes, alignment, seed=recipe.seed)
        for split in ("validation", "test"):
            scores = [system.answer(task, split, TASK_IDS).accuracy() for task in stream]
            found[split, heads] = {
                name: sum(row[name] for row in scores) / len(scores) for name in TASK_IDS
            }
    CACHE[place] = found
    return found


if __name__ == "__main__":
    main()
