"""Frozen classifiers with and without features adapted to the first task, as one table.

    python recipes/adapt_first.py --cifar ../shared/data/vision --vit ../shared/data/weights/NAME

With `adapt: first` the module of a seed is the same for every method, because it is trained before
the method computes anything. So it is trained once a seed, by `ncm`, and the other methods compute
their heads on top, which is what they do in a run of their own. Accuracy is over the classes of
all tasks, with the task not known, averaged over tasks. A seed is that of the examples, of the
training and of the order of classes. Settings are those of the recipes, with fewer examples.

The table goes to recipes/results/adapt_first.csv and, as means over the seeds, to the terminal.
Rows that were not asked for stay in it.
"""

import argparse
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from common import write_over
from torch import Tensor

from perdure import Backbone, Recipe
from perdure.data.task import TaskStream
from perdure.learning.loop import Session, learn
from perdure.learning.method import Method
from perdure.methods.anacp import AnaCP
from perdure.methods.klda import KLDA
from perdure.methods.lda import LDA
from perdure.methods.ncm import NCM
from perdure.methods.parts import frozen
from perdure.methods.ranpac import RanPAC
from perdure.models import adapters
from perdure.models.backbone import pooled
from perdure.models.examples import Examples

RECIPES = {
    "demo": "methods_demo.yaml",
    "split_cifar100": "inflora_cifar100_small.yaml",
    "split_mnist": "methods_mnist.yaml",
}
SIZES: dict[str, dict[str, object]] = {
    "demo": {"train": 150, "validation": 50, "test": 150},
    "split_cifar100": {"train": 200, "validation": 50, "test": 100},
    "split_mnist": {"train": 100, "validation": 50, "test": 100},
}
METHODS: dict[str, Callable[[], Method]] = {
    "ncm": NCM,
    "lda": LDA,
    "klda": KLDA,
    "anacp": AnaCP,
    "ranpac": lambda: RanPAC(features=1000, normalise=True),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--streams", nargs="+", default=list(RECIPES))
    parser.add_argument("--cifar", help="the folder of CIFAR-100")
    parser.add_argument("--vit", help="the folder of ViT-Ti/16")
    parser.add_argument("--image-size", type=int, default=64, help="of CIFAR-100's images")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--set", nargs="+", default=[], help="other settings of the recipe")
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows: Sequence[Mapping[str, str]] = []
    for stream in arguments.streams:
        for seed in arguments.seeds:
            recipe = Recipe.read(
                Path(__file__).parent / RECIPES[stream],
                [*settings(arguments, stream, seed), *arguments.set],
            )
            new = both(stream, seed, recipe)
            table = arguments.results / "adapt_first.csv"
            rows = write_over(table, new, key=("stream", "seed", "adapt", "method"))
    print(over_seeds(rows))


def settings(arguments: argparse.Namespace, stream: str, seed: int) -> list[str]:
    values: dict[str, object] = {f"stream.{name}": size for name, size in SIZES[stream].items()}
    values |= {"seed": seed, "stream.seed": seed}
    if stream != "demo":
        values["stream.order_seed"] = seed
    if stream == "split_cifar100":
        values["backbone.image_size"] = arguments.image_size
        values |= {"stream.folder": arguments.cifar} if arguments.cifar else {}
        values |= {"backbone.model": arguments.vit} if arguments.vit else {}
    return [f"{name}={value}" for name, value in values.items()]


def both(name: str, seed: int, recipe: Recipe) -> list[dict[str, str]]:
    """The rows of a seed: every method on the frozen features, and on the adapted ones."""
    stream, backbone = recipe.make_stream(), recipe.make_backbone()
    first = stream.tasks[:1]
    rows = []
    for adapt in ("", "first"):
        started = time.process_time()
        adapters.detach(backbone.model)
        if adapt:
            learn(
                backbone,
                first,
                NCM(adapt="first"),
                recipe.make_training(),
                session=Session(seed=seed),
            )
        remember_features()
        for variant, make in METHODS.items():
            accuracies = learned(make(), backbone, stream, seed)
            row = {"stream": name, "seed": str(seed), "adapt": adapt, "method": variant}
            row |= {"accuracy": f"{100 * np.mean(accuracies):.2f}"}
            row |= {"first_task": f"{100 * accuracies[0]:.2f}"}
            row |= {"later_tasks": f"{100 * np.mean(accuracies[1:]):.2f}"}
            rows.append(row)
            print(row, flush=True)
        print(f"{time.process_time() - started:.0f} s", flush=True)
    return rows


def remember_features() -> None:
    """Make all methods share the features of each split, until this is called again."""
    known: dict[int, Tensor] = {}

    def remembered(backbone: Backbone, examples: Examples) -> Tensor:
        # A backbone keeps the examples that it has encoded, so they are the same objects.
        if id(examples) not in known:
            known[id(examples)] = pooled(backbone, examples)
        return known[id(examples)]

    frozen.pooled = remembered


def learned(method: Method, backbone: Backbone, stream: TaskStream, seed: int) -> list[float]:
    """Compute the heads of all tasks, and return each task's accuracy over all classes."""
    torch.manual_seed(seed)
    for name in list(backbone.heads):
        backbone.close(name)
    optimizer = torch.optim.SGD([torch.zeros(1)])
    for task in stream:
        backbone.open(task)
        method.begin(backbone, task)
        method.end(backbone, task, optimizer)
    accuracies = []
    first = 0
    for task in stream:
        examples = backbone.encode(task.rows("test"))
        features = frozen.pooled(backbone, examples)
        logits = torch.cat([backbone.own(name)(features) for name in stream.names], dim=1)
        right = logits.argmax(1) == torch.tensor(examples.labels) + first
        accuracies.append(right.double().mean().item())
        first += len(task.classes)
    return accuracies


def over_seeds(rows: Sequence[Mapping[str, str]]) -> str:
    """A Markdown table of mean ± standard deviation over the seeds."""
    lines = [f"| | {' | '.join(METHODS)} |", "|---" * (len(METHODS) + 1) + "|"]
    for stream, adapt in dict.fromkeys((row["stream"], row["adapt"]) for row in rows):
        cells = []
        for method in METHODS:
            values = [
                float(row["accuracy"])
                for row in rows
                if (row["stream"], row["adapt"], row["method"]) == (stream, adapt, method)
            ]
            spread = np.std(values, ddof=1) if len(values) > 1 else 0
            cells.append(f"{np.mean(values):.1f} ± {spread:.1f}")
        label = f"{stream}, `adapt: first`" if adapt else stream
        lines.append(f"| {label} | {' | '.join(cells)} |")
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    main()
