"""Classifiers on the frozen backbone with few and many examples per class, as one table.

    python recipes/frozen.py --folder ../shared/data/intents

CLINC150 in ten tasks, accuracy over all 150 intents with the task not known. A seed is that of the
draw of the training queries and of the run. With all 100 queries per intent there is nothing to
draw, so only methods with random features depend on the seed. Every method has its default
settings. `joint` is a logistic regression of scikit-learn on the features of all tasks at
once, scaled to unit length, whose C was chosen on validation queries.

What is there already under `runs/frozen` is taken up. The table goes to
recipes/results/frozen_clinc150.csv and, as means over the seeds, to the terminal. Rows that were
not asked for stay in it.
"""

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import run_plan, write_over
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from perdure import Backbone, Recipe
from perdure.data.task import SPLITS, TaskStream
from perdure.evaluation import metrics
from perdure.models import heads
from perdure.models.backbone import pooled
from perdure.models.examples import Batch

RECIPE = Path(__file__).parent / "frozen_clinc150.yaml"
METHODS = {
    "ncm": "ncm",
    "lda": "lda",
    "lda, unit norm": "{name: lda, normalise: true}",
    "klda": "klda",
    "anacp": "anacp",
    "ranpac": "{name: ranpac, normalise: true}",
}
JOINT = "joint"
CLASSES_OF_A_TASK = 15
ALL = 100
"""The number of training queries per intent in the data set."""
STRENGTHS = (10.0, 100.0)
"""The C of logistic regression to choose from."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", help="the data, where they are not to come from the hub")
    parser.add_argument("--sizes", type=int, nargs="+", default=[10, 20, 50, ALL])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--methods", nargs="+", default=[*METHODS, JOINT])
    parser.add_argument("--runs", type=Path, default=Path("runs/frozen"))
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    backbone = Recipe.read(RECIPE).make_backbone()
    features = Remembered(backbone, arguments.runs / "features.pt")
    rows = []
    for size in arguments.sizes:
        for seed in arguments.seeds:
            for method in arguments.methods:
                rows += measured(arguments, backbone, method, size, seed)
            features.save()
    table = arguments.results / f"{RECIPE.stem}.csv"
    rows = write_over(table, rows, key=("examples_per_class", "seed", "method"))
    print(over_seeds(rows))


class Remembered:
    """The features of a frozen backbone, of which each text's is computed only once, in any run.

    With `pooling: mean`, heads and the task posterior read the same feature.
    """

    def __init__(self, backbone: Backbone, file: Path):
        self.file = file
        self.known: dict[tuple[int, ...], Tensor] = torch.load(file) if file.exists() else {}
        self.compute = backbone.forward
        backbone.forward = backbone.features = self.forward

    def forward(self, batch: Batch) -> Tensor:
        lengths = batch.inputs["attention_mask"].sum(1).tolist()
        texts = []
        for tokens, length in zip(batch.inputs["input_ids"].tolist(), lengths, strict=True):
            texts.append(tuple(tokens[:length]))
        if not all(text in self.known for text in texts):
            self.known.update(zip(texts, self.compute(batch).clone(), strict=True))
        return torch.stack([self.known[text] for text in texts])

    def save(self) -> None:
        self.file.parent.mkdir(parents=True, exist_ok=True)
        torch.save(self.known, self.file)


def measured(
    arguments: argparse.Namespace, backbone: Backbone, method: str, size: int, seed: int
) -> list[dict[str, str]]:
    """One row: learned and measured now, or before."""
    random = method in ("klda", "anacp", "ranpac")
    if size == ALL and not random and seed != arguments.seeds[0]:
        return []
    name = method.replace(", ", "-").replace(" ", "-")
    cached = arguments.runs / f"{name}-{size}-{seed}.json"
    if not cached.exists():
        settings = [f"stream.train={CLASSES_OF_A_TASK * size}", f"stream.seed={seed}"]
        settings += [f"seed={seed}", f"method={METHODS.get(method, 'lda')}"]
        settings += [f"stream.folder={arguments.folder}"] if arguments.folder else []
        recipe = Recipe.read(RECIPE, settings)
        started = time.process_time()
        if method == JOINT:
            accuracy = logistic_regression(backbone, recipe.make_stream())
        else:
            accuracy = learned(recipe, backbone, cached.with_suffix(""))
        row = {"examples_per_class": str(size), "seed": str(seed), "method": method}
        row |= {"accuracy": f"{100 * accuracy:.2f}"}
        cached.write_text(json.dumps(row))
        print(row, f"{time.process_time() - started:.0f} s", flush=True)
    row = json.loads(cached.read_text())
    return [{name: str(value) for name, value in row.items()}]


def learned(recipe: Recipe, backbone: Backbone, folder: Path) -> float:
    """Learn the ten tasks, and return the average accuracy after the last one."""
    for name in list(backbone.heads):
        backbone.close(name)
    run = run_plan(recipe.plan(recipe.make_stream(), backbone), recipe, folder)
    return metrics.average_accuracy(run.matrix(task_id="none"))


def logistic_regression(backbone: Backbone, stream: TaskStream) -> float:
    """Return the test accuracy of the C with the best validation accuracy."""
    x, y = {}, {}
    for split in SPLITS:
        x[split], y[split] = features_of(backbone, stream, split)
    best: tuple[float, float] = (-1.0, 0.0)
    for strength in STRENGTHS:
        model = LogisticRegression(C=strength, max_iter=200).fit(x["train"], y["train"])
        scores = [model.score(x[split], y[split]) for split in ("validation", "test")]
        best = max(best, (scores[0], scores[1]))
    return best[1]


def features_of(
    backbone: Backbone, stream: TaskStream, split: Any
) -> tuple[np.ndarray, np.ndarray]:
    """Features of unit length of all tasks, and labels over all classes."""
    values, labels = [], []
    for number, task in enumerate(stream):
        examples = backbone.encode(task.rows(split))
        values.append(heads.unit_norm(pooled(backbone, examples)))
        labels += [CLASSES_OF_A_TASK * number + label for label in examples.labels]
    return torch.cat(values).numpy(), np.array(labels)


def over_seeds(rows: Sequence[Mapping[str, str]]) -> str:
    """A Markdown table of mean ± standard deviation over the seeds."""
    methods = list(dict.fromkeys(row["method"] for row in rows))
    lines = [f"| examples per class | {' | '.join(methods)} |", "|---" * (len(methods) + 1) + "|"]
    for size in dict.fromkeys(row["examples_per_class"] for row in rows):
        cells = []
        for method in methods:
            values = [
                float(row["accuracy"])
                for row in rows
                if (row["method"], row["examples_per_class"]) == (method, size)
            ]
            spread = f" ± {np.std(values, ddof=1):.1f}" if len(values) > 1 else ""
            cells.append(f"{np.mean(values):.1f}{spread}" if values else "–")
        lines.append(f"| {size} | {' | '.join(cells)} |")
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    main()
