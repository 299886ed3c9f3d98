"""The task posterior of PIC with several settings, and the out-of-scope queries of CLINC150.

    python recipes/posterior.py --folder DATA
    python recipes/posterior.py --folder DATA --method lda

DATA has the folders `intents` and `text15`. Each stream is learned once (runs that are there
already are taken as they are); then the posterior is computed from features of the frozen backbone,
with each of SETTINGS, on the validation and the test splits. The tables go to
recipes/results/posterior_METHOD.csv and recipes/results/unknown.csv, in percent.
"""

import argparse
import itertools
from collections.abc import Mapping
from pathlib import Path

import pyarrow.parquet as pq
import torch
from common import write
from torch import Tensor

from perdure import Model, Recipe, Statistics, TaskPosterior
from perdure.data.task import Split, Task, TaskRows
from perdure.evaluation.calibration import expected_calibration_error, reliability
from perdure.evaluation.posterior import Covariance, Kind, describe, scaled
from perdure.evaluation.score import probabilities, task_logits
from perdure.evaluation.unknown import KnownInputs, auroc, false_positives
from perdure.evaluation.validation import OwnClasses, Validation, fitted_temperature
from perdure.models.backbone import Backbone
from perdure.runs.inputs import texts_or_pairs

RECIPES = Path(__file__).parent
STREAMS = {
    "demo": ("methods_demo.yaml", ""),
    "clinc150": ("clinc150.yaml", "intents"),
    "standard_cl": ("standard_cl.yaml", "text15"),
    "split_mnist": ("methods_mnist.yaml", ""),
}
"""The recipe of each stream, and the folder of its data."""
METHODS = {
    "isolated": [
        "method={name: isolated, start: fresh}",
        "rule={name: task_arithmetic, scale: 1/n}",
    ],
    # its heads are computed from the frozen backbone, so nothing is trained
    "lda": ["method=lda", "rule=last"],
}
Settings = tuple[Kind, float, Covariance, bool]
SETTINGS: list[Settings] = [
    ("plain", 0.1, "shared", False),  # the defaults
    ("plain", 0.1, "shared", True),
    ("unit", 0.1, "shared", True),
    ("unit", 0.05, "shared", True),
    ("plain", 0.05, "by_task", True),
    ("unit", 0.05, "by_task", True),
    ("unit", 0.02, "by_task", True),
]
"""The features, the shrinkage, the covariance, and whether a temperature is fitted."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--streams", nargs="+", default=list(STREAMS))
    parser.add_argument("--method", choices=METHODS, default="isolated")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--runs", type=Path, default=Path("runs/posterior"))
    asked = parser.parse_args()
    rows: list[Mapping[str, object]] = []
    for name, seed in itertools.product(asked.streams, asked.seeds):
        file, data = STREAMS[name]
        settings = [*METHODS[asked.method], "evaluation.steps=none", f"seed={seed}"]
        if data:
            settings.append(f"stream.folder={asked.folder / data}")
        recipe = Recipe.read(RECIPES / file, settings)
        run = recipe.run(asked.runs / f"{asked.method}-{name}-{seed}")
        model = Model(run)
        tasks = recipe.make_stream().tasks
        rows += measured({"method": asked.method, "stream": name, "seed": seed}, model, tasks)
        write(RECIPES / "results" / f"posterior_{asked.method}.csv", rows)
        if name == "clinc150" and seed == asked.seeds[0]:
            found = out_of_scope(model.backbone, tasks, asked.folder / data)
            write(RECIPES / "results" / "unknown.csv", found)


def measured(
    about: Mapping[str, object], model: Model, tasks: tuple[Task, ...]
) -> list[Mapping[str, object]]:
    """Measure a stream with each of SETTINGS."""
    rows: list[Mapping[str, object]] = []
    logits: dict[tuple[str, Split], Mapping[str, Tensor]] = {}
    for task, split in itertools.product(tasks, ("validation", "test")):
        examples = model.backbone.encode(task.rows(split))
        logits[task.name, split] = task_logits(
            model.backbone, model.combined, examples, model.classes
        )
    for features, shrinkage, covariance, fits in SETTINGS:
        statistics, validations = fitted(model.backbone, tasks, features)
        temperature = fitted_temperature(validations.values()) if fits else 1.0
        posterior = TaskPosterior(
            statistics,
            shrinkage=shrinkage,
            temperature=temperature,
            features=features,
            covariance=covariance,
        )
        for split in ("validation", "test"):
            row = {
                **about,
                "features": features,
                "shrinkage": shrinkage,
                "covariance": covariance,
                "temperature": round(temperature, 2),
                "split": split,
            }
            rows.append(row | scores(model, tasks, split, posterior, logits))
            print(rows[-1], flush=True)
    return rows


def fitted(
    backbone: Backbone, tasks: tuple[Task, ...], features: Kind
) -> tuple[dict[str, Statistics], dict[str, Validation]]:
    """Return what a run stores of each task for the posterior."""
    statistics: dict[str, Statistics] = {}
    validations: dict[str, Validation] = {}
    for task in tasks:
        x, y = described(backbone, task, "train", features)
        statistics[task.name] = Statistics.of(x, y, len(task.classes))
        x, y = described(backbone, task, "validation", features)
        validations[task.name] = Validation.of(statistics[task.name], x, y)
    return statistics, validations


def described(
    backbone: Backbone, task: Task, split: Split, features: Kind
) -> tuple[Tensor, Tensor]:
    """Return the frozen backbone's features of a task's examples, and their labels."""
    examples = backbone.encode(task.rows(split))
    return scaled(describe(backbone, examples), features), torch.tensor(examples.labels)


def scores(
    model: Model,
    tasks: tuple[Task, ...],
    split: Split,
    posterior: TaskPosterior,
    logits: Mapping[tuple[str, Split], Mapping[str, Tensor]],
) -> dict[str, float]:
    """Return averages over tasks: accuracy with the task given and inferred, and calibration."""
    index = {label: i for i, label in enumerate(dict.fromkeys(sum(model.classes.values(), ())))}
    columns = [[index[label] for label in classes] for classes in model.classes.values()]
    given: list[float] = []
    inferred: list[float] = []
    log_p: list[Tensor] = []
    owners: list[Tensor] = []
    for number, task in enumerate(tasks):
        x, y = described(model.backbone, task, split, "plain")
        log_weights = posterior.log_prob(x)
        of_task = logits[task.name, split]
        answers = probabilities(of_task, columns, log_weights).argmax(1)
        right = answers == torch.tensor(columns[number])[y]
        inferred.append(right.double().mean().item())
        given.append((of_task[task.name].argmax(1) == y).double().mean().item())
        log_p.append(log_weights)
        owners.append(torch.full((len(y),), number))
    best = torch.cat(log_p).exp().max(1)
    found = best.indices == torch.cat(owners)
    values = {
        "given": sum(given) / len(given),
        "posterior": sum(inferred) / len(inferred),
        "gap": (sum(given) - sum(inferred)) / len(given),
        "task_found": found.double().mean().item(),
        "task_ece": expected_calibration_error(reliability(best.values, found)),
    }
    return {key: round(100 * value, 2) for key, value in values.items()}


def out_of_scope(
    backbone: Backbone, tasks: tuple[Task, ...], folder: Path
) -> list[Mapping[str, object]]:
    """Tell the queries that are out of scope from the test queries, by several scores."""
    table = pq.read_table(folder / "clinc150.parquet").to_pylist()
    outside = [row["text"] for row in table if row["split"] == "oos_test"]
    unknown = describe(backbone, backbone.prepare([TaskRows("", texts_or_pairs(outside))]))
    known = torch.cat([described(backbone, task, "test", "plain")[0] for task in tasks])
    rows: list[Mapping[str, object]] = []
    for features in ("plain", "unit"):
        statistics, validations = fitted(backbone, tasks, features)
        posterior = TaskPosterior(statistics, features=features)
        shares = KnownInputs(statistics, validations, features=features)
        # As if all tasks were one: the usual forms, which a forgotten task would change.
        counts = torch.cat([of_task.counts for of_task in statistics.values()])
        sums = torch.cat([of_task.sums for of_task in statistics.values()])
        products = torch.stack([of_task.products for of_task in statistics.values()]).sum(0)
        together = OwnClasses(Statistics(counts, sums, products))
        both: list[dict[str, Tensor]] = []
        for x in (known, unknown):
            likeliest = posterior.log_prob(x).argmax(1)
            squares = together.squares(scaled(x, features))
            both.append(
                {
                    "1 - max p(class | x)": -(together.log_prior - squares / 2).softmax(1).amax(1),
                    "Mahalanobis, one covariance": squares.amin(1),
                    "relative, one covariance": together.relative(scaled(x, features)),
                    "relative, own task": -shares.shares(x, likeliest),
                }
            )
        for score in both[0]:
            row = {
                "features": features,
                "score": score,
                "auroc": round(100 * auroc(both[0][score], both[1][score]), 2),
                "fpr95": round(100 * false_positives(both[0][score], both[1][score]), 2),
                "known lost": "",
                "unknown caught": "",
            }
            if score == "relative, own task":
                lost, caught = (((-each[score]) <= 0.05).double().mean() for each in both)
                row |= {"known lost": f"{100 * lost:.2f}", "unknown caught": f"{100 * caught:.2f}"}
            rows.append(row)
            print(rows[-1], flush=True)
    return rows


if __name__ == "__main__":
    main()
