"""Methods on one recipe, each tuned alike: chosen on validation data, then measured on test data.

    python recipes/compare.py recipes/inflora_mnist.yaml --seeds 0 1 2

Each variant of the recipe (see `VARIANTS`) learns with each of its learning rates on the first
seed. With either kind of heads (`own`: as each task left its own; `aligned`: all aligned after the
last task, as the recipe's `alignment` says) the rate with the best average accuracy on validation
data is then run on all seeds. A seed is also the order of the classes. Runs that exist already
under `runs` are continued, and what was measured is not measured again.
The table goes to recipes/results/<recipe>.csv: the average accuracy after the last task in percent,
with and without the task id. Rows of variants and seeds that were not asked for stay in it.
"""

import argparse
import json
import statistics
from pathlib import Path

import torch
from common import write_over

from perdure import Alignment, Gaussians, Recipe, Run, align
from perdure.data.task import TaskStream
from perdure.evaluation.score import TASK_IDS, features
from perdure.evaluation.system import System
from perdure.runs.resume import restored
from perdure.runs.state import read

RATES = ("3.0e-4", "1.0e-3", "3.0e-3")
LORA = "rank: 10, alpha: 10, target_modules: [key, value, k_proj, v_proj]"
AVERAGED = "rule={name: task_arithmetic, scale: 1/n}"
# The settings of each variant, and the learning rates to choose from.
VARIANTS: dict[str, tuple[list[str], tuple[str, ...]]] = {
    "InfLoRA": ([], RATES),
    # It has more rates, because its best ones lie at the lower end.
    "sequential LoRA": (
        [f"method={{name: sequential, {LORA}}}", "rule=last"],
        (*RATES, "1.0e-4", "3.0e-5"),
    ),
    "PIC": ([f"method={{name: isolated, {LORA}}}", AVERAGED], RATES),
    "PIC in designed subspaces": (["method.upon=pretrained", AVERAGED], RATES),
    # Ablations, at InfLoRA's rate.
    "random": (["method.design=random"], ("1.0e-3",)),
    "new_task": (["method.design=new_task"], ("1.0e-3",)),
    "orthogonal": (["method.design=orthogonal"], ("1.0e-3",)),
    "statistics of 10 %": (["method.statistics_examples=20"], ("1.0e-3",)),
}
HEADS = ("own", "aligned")
SPLITS = ("validation", "test")

Accuracies = dict[str, float]
"""The average over tasks, between 0 and 1, by task id."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--folder", help="The data's folder; by default they come from the hub.")
    parser.add_argument("--model", help="The backbone; by default it comes from the hub.")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=list(VARIANTS))
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--set", nargs="+", default=[], help="Further settings, for all runs.")
    arguments = parser.parse_args()
    rows = []
    for variant in arguments.variants:
        for heads in HEADS:
            rate = best_rate(arguments, variant, heads)
            for seed in arguments.seeds:
                row = {"variant": variant, "heads": heads, "learning_rate": rate, "seed": str(seed)}
                accuracies = learned(arguments, variant, rate, seed)[f"test, {heads}"]
                row |= {task_id: f"{100 * value:.1f}" for task_id, value in accuracies.items()}
                print(row, flush=True)
                rows.append(row)
    table = Path(__file__).parent / "results" / f"{arguments.recipe.stem}.csv"
    write_over(table, rows, key=("variant", "heads", "seed"))


def best_rate(arguments: argparse.Namespace, variant: str, heads: str) -> str:
    """Return the learning rate that is best on validation data without a task id."""
    rates = VARIANTS[variant][1]
    found = {}
    for rate in rates:
        accuracies = learned(arguments, variant, rate, arguments.seeds[0])
        found[rate] = accuracies[f"validation, {heads}"]["none"]
    return max(rates, key=lambda rate: found[rate])


def learned(
    arguments: argparse.Namespace, variant: str, rate: str, seed: int
) -> dict[str, Accuracies]:
    """Learn the stream by a variant, and return the accuracies, by split and kind of heads."""
    name = f"{variant.replace(' ', '-')}-{rate}-{seed}"
    folder = arguments.runs / arguments.recipe.stem / name
    cached = folder.with_name(f"{name}.json")
    if cached.is_file():
        return json.loads(cached.read_text())
    recipe = Recipe.read(arguments.recipe, settings_of(arguments, variant, rate, seed))
    alignment = recipe.make_training().alignment or Alignment()
    recipe.training["alignment"] = None
    found = measured(recipe, recipe.run(folder, quiet=False), alignment)
    cached.write_text(json.dumps(found))
    return found


def settings_of(arguments: argparse.Namespace, variant: str, rate: str, seed: int) -> list[str]:
    settings = [
        *VARIANTS[variant][0],
        f"training.learning_rate={rate}",
        f"seed={seed}",
        f"stream.order_seed={seed}",
    ]
    if arguments.folder:
        settings.append(f"stream.folder={arguments.folder}")
    if arguments.model:
        settings.append(f"backbone.model={arguments.model}")
    return [*settings, *arguments.set]


def measured(recipe: Recipe, run: Run, alignment: Alignment) -> dict[str, Accuracies]:
    """Measure the model after the last task, before and after its heads are aligned."""
    stream, backbone = recipe.make_stream(), recipe.make_backbone()
    system = restored(read(run.folder), backbone, recipe.make_rule())
    found = {}
    for heads in HEADS:
        if heads == "aligned":
            align(
                backbone,
                gaussians_of(system, stream),
                system.classes,
                alignment,
                seed=recipe.seed,
            )
        for split in SPLITS:
            scores = [system.answer(task, split, TASK_IDS).scores() for task in stream]
            accuracies = {}
            for task_id in TASK_IDS:
                accuracies[task_id] = statistics.mean(of_task[task_id] for of_task in scores)
            found[f"{split}, {heads}"] = accuracies
    return found


def gaussians_of(system: System, stream: TaskStream) -> dict[str, Gaussians]:
    """Fit a Gaussian to each class, with the model as it was just after it learned the task."""
    gaussians = {}
    for step, task in enumerate(system.learned, start=1):
        examples = system.backbone.encode(stream[step - 1].rows("train"))
        values = features(system.backbone, system.until(step).combined, examples).cpu()
        labels = torch.tensor(examples.labels)
        gaussians[task.name] = Gaussians.of(values, labels, len(task.classes))
    return gaussians


if __name__ == "__main__":
    main()
