"""The task posterior of PIC with several settings, and the out-of-scope queries of CLINC150.

    python recipes/posterior.py --folder DATA
    python recipes/posterior.py --folder DATA --method lda
    python recipes/posterior.py --folder DATA --unknown

DATA has the folders `intents` and `text15`. Each stream is learned once (runs that are there
already are taken as they are); then the posterior is computed from features of the frozen backbone,
with each of SETTINGS, on the validation and the test splits. The tables go to
recipes/results/posterior_METHOD.csv and recipes/results/unknown.csv, in percent. `--unknown` makes
the second one alone, which needs no run.
"""

import argparse
import itertools
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import torch
from common import write
from torch import Tensor

from perdure import Model, Recipe, Statistics, TaskPosterior
from perdure.data.task import Split, Task, TaskRows, TaskStream
from perdure.evaluation.calibration import expected_calibration_error, reliability
from perdure.evaluation.posterior import Covariance, Kind, describe, scaled
from perdure.evaluation.score import probabilities, task_logits
from perdure.evaluation.unknown import KnownInputs, auroc, false_positives
from perdure.evaluation.validation import OwnClasses, Validation, fitted_temperature
from perdure.models import heads
from perdure.models.backbone import Backbone

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
FOURIER = (500, 2000)
"""The numbers of random Fourier features of the kernel, whose width is that of `klda`."""
BANDWIDTH = 0.25
Mapped = Callable[[Tensor], Tensor]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--streams", nargs="+", default=list(STREAMS))
    parser.add_argument("--method", choices=METHODS, default="isolated")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--runs", type=Path, default=Path("runs/posterior"))
    parser.add_argument("--unknown", action="store_true")
    asked = parser.parse_args()
    if asked.unknown:
        file, data = STREAMS["clinc150"]
        recipe = Recipe.read(RECIPES / file, [f"stream.folder={asked.folder / data}"])
        rows = out_of_scope(recipe.make_backbone(), recipe.make_stream())
        return write(RECIPES / "results" / "unknown.csv", rows)
    rows: list[Mapping[str, object]] = []
    for name, seed in itertools.product(asked.streams, asked.seeds):
        file, data = STREAMS[name]
        settings = [*METHODS[asked.method], "evaluation.steps=none", f"seed={seed}"]
        if data:
            settings.append(f"stream.folder={asked.folder / data}")
        recipe = Recipe.read(RECIPES / file, settings)
        run = recipe.run(asked.runs / f"{asked.method}-{name}-{seed}")
        model = Model(run)
        stream = recipe.make_stream()
        tasks = stream.tasks
        rows += measured({"method": asked.method, "stream": name, "seed": seed}, model, tasks)
        write(RECIPES / "results" / f"posterior_{asked.method}.csv", rows)
        if name == "clinc150" and seed == asked.seeds[0]:
            outside = out_of_scope(model.backbone, stream)
            write(RECIPES / "results" / "unknown.csv", outside)


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
        kind = partial(scaled, kind=features)
        statistics, validations = fitted(model.backbone, tasks, kind)
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
    backbone: Backbone, tasks: tuple[Task, ...], mapped: Mapped
) -> tuple[dict[str, Statistics], dict[str, Validation]]:
    """Return what a run stores of each task for the posterior, of features that are mapped."""
    statistics: dict[str, Statistics] = {}
    validations: dict[str, Validation] = {}
    for task in tasks:
        x, y = described(backbone, task, "train")
        statistics[task.name] = Statistics.of(mapped(x), y, len(task.classes))
        x, y = described(backbone, task, "validation")
        validations[task.name] = Validation.of(statistics[task.name], mapped(x), y)
    return statistics, validations


def described(backbone: Backbone, task: Task, split: Split) -> tuple[Tensor, Tensor]:
    """Return the frozen backbone's features of a task's examples, and their labels."""
    examples = backbone.encode(task.rows(split))
    return describe(backbone, examples), torch.tensor(examples.labels)


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
        x, y = described(model.backbone, task, split)
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


def out_of_scope(backbone: Backbone, stream: TaskStream) -> list[Mapping[str, object]]:
    """Tell the queries that are out of scope from the test queries, by several scores."""
    assert stream.unknown is not None
    unknown = describe(backbone, backbone.encode([TaskRows("", stream.unknown)]))
    known = torch.cat([described(backbone, task, "test")[0] for task in stream])
    maps: dict[str, Mapped] = {
        "plain": partial(scaled, kind="plain"),
        "unit": partial(scaled, kind="unit"),
    }
    for features in FOURIER:
        maps[f"fourier, {features}"] = kernel(backbone, stream[0], features)
    rows: list[Mapping[str, object]] = []
    for name, mapped in maps.items():
        statistics, validations = fitted(backbone, stream.tasks, mapped)
        posterior = TaskPosterior(statistics)
        shares = KnownInputs(statistics, validations)
        # As if all tasks were one: the usual forms, which a forgotten task would change.
        together = OwnClasses(Statistics.side_by_side(statistics.values()))
        both: list[dict[str, Tensor]] = []
        for x in (mapped(known), mapped(unknown)):
            likeliest = posterior.log_prob(x).argmax(1)
            squares = together.squares(x)
            both.append(
                {
                    "1 - max p(class | x)": -(together.log_prior - squares / 2).softmax(1).amax(1),
                    "Mahalanobis, one covariance": squares.amin(1),
                    "relative, one covariance": together.relative(x),
                    "relative, own task": -shares.shares(x, likeliest),
                }
            )
        for score in both[0]:
            row = {
                "features": name,
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


def kernel(backbone: Backbone, first: Task, features: int) -> Mapped:
    """Return random Fourier features of a Gaussian kernel, as wide as `klda` makes it."""
    x = heads.unit_norm(described(backbone, first, "train")[0])
    distance = 2 * (1 - x.double().mean(0).square().sum())
    gamma = (BANDWIDTH / distance).item()
    W, b = heads.fourier(0, x.shape[1], features, gamma)
    return lambda plain: heads.fourier_features(heads.unit_norm(plain), W, b)


if __name__ == "__main__":
    main()
