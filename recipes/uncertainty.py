"""What a posterior over the weights knows about its answers: calibration, and unknown tasks.

    python recipes/uncertainty.py recipes/methods_priors.yaml runs/methods/methods_priors/vcl-*

The runs are those of `vcl` that recipes/methods.py makes, one per seed. Each is taken as it was
before its last task, whose test examples are then from a task that nobody has taught it. Answers
are those of the means of the weights, and the mean probabilities over samples of the weights.

The table goes to recipes/results/uncertainty_<recipe>.csv: the expected calibration error with the
task given, in percent, and the area under the ROC curve (0.5 is chance) with which a number tells
the held-out task's examples from those of the learned tasks.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from common import write
from jaxtyping import Float
from torch import Tensor

from perdure.analysis.subject import subject_of
from perdure.analysis.uncertainty import loaded_sample
from perdure.data.task import Task
from perdure.evaluation.calibration import expected_calibration_error, reliability
from perdure.evaluation.posterior import TaskPosterior, describe
from perdure.evaluation.score import task_logits
from perdure.evaluation.system import System
from perdure.runs.state import read

Logits = Float[Tensor, "examples classes"]
Probabilities = Float[Tensor, "examples classes"]
ALL = slice(None)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("recipe", type=Path, help="The recipe, which names the table.")
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--examples", type=int, default=60, help="Test examples per task.")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for folder in arguments.runs:
        rows.append(measured(folder, arguments.samples, arguments.examples))
        print(rows[-1], flush=True)
    write(Path(__file__).parent / "results" / f"uncertainty_{arguments.recipe.stem}.csv", rows)
    show(rows)


def measured(folder: Path, samples: int, examples: int) -> dict[str, str]:
    """Return the row of a run."""
    run = read(folder)
    subject = subject_of(run, None, None, examples)
    stream = subject.stream.limited(test=examples, seed=0)
    system = subject.system.until(len(stream) - 1)
    *learned, held_out = stream.tasks
    at_means = [logits_of(system, stream.tasks, None)]
    sampled = []
    for number in range(samples):
        generator = torch.Generator().manual_seed(number)
        sampled.append(logits_of(system, stream.tasks, generator))
    row = {"run": folder.name, "seed": str(run.recipe["seed"]), "held out": held_out.name}
    scores = unfamiliar(system, stream.tasks)
    for kind, logits in (("means", at_means), ("averaged", sampled)):
        accuracy, error = calibration(system, learned, logits)
        row[f"accuracy, {kind}"] = f"{100 * accuracy:.2f}"
        row[f"calibration error, {kind}"] = f"{100 * error:.2f}"
        # The task is not known: the classes of all heads compete under one softmax.
        scores[f"unsure, {kind}"] = {
            task.name: 1 - averaged(logits, task).amax(1) for task in stream
        }
    # The part of the entropy that comes from not knowing the weights.
    scores["disagreement"] = {task.name: disagreement(sampled, task) for task in stream}
    for name, score in scores.items():
        known = torch.cat([score[task.name] for task in learned])
        row[f"AUROC, {name}"] = f"{area(score[held_out.name], known):.3f}"
    return row


def logits_of(
    system: System, tasks: Sequence[Task], generator: torch.Generator | None
) -> dict[str, Logits]:
    """Return the logits of the heads of all learned tasks, for the examples of each task."""
    by_task = {}
    with loaded_sample(system, generator) as sample:
        for task in tasks:
            rows = system.backbone.encode(task.rows("test"))
            logits = task_logits(system.backbone, sample.combined, rows, system.classes)
            by_task[task.name] = torch.cat(list(logits.values()), 1).double()
    return by_task


def averaged(sampled: Sequence[dict[str, Logits]], task: Task, head: slice = ALL) -> Probabilities:
    """Return the mean probabilities of the classes of some or all heads."""
    each = [logits[task.name][:, head].softmax(1) for logits in sampled]
    return torch.stack(each).mean(0)


def disagreement(sampled: Sequence[dict[str, Logits]], task: Task) -> Float[Tensor, " examples"]:
    """Return the entropy of the mean probabilities, less the mean entropy of the samples'."""
    each = [entropy(logits[task.name].softmax(1)) for logits in sampled]
    return entropy(averaged(sampled, task)) - torch.stack(each).mean(0)


def calibration(
    system: System, learned: Sequence[Task], sampled: Sequence[dict[str, Logits]]
) -> tuple[float, float]:
    """Return the accuracy and the expected calibration error, both with the task given."""
    confidence, is_right = [], []
    first = 0
    for task in learned:
        head = slice(first, first + len(task.classes))
        first = head.stop
        best = averaged(sampled, task, head).max(1)
        labels = torch.tensor(system.backbone.encode(task.rows("test")).labels)
        confidence.append(best.values)
        is_right.append(best.indices == labels)
    right = torch.cat(is_right)
    error = expected_calibration_error(reliability(torch.cat(confidence), right))
    return right.double().mean().item(), error


def unfamiliar(system: System, tasks: Sequence[Task]) -> dict[str, dict[str, Tensor]]:
    """Return the scores of the task posterior, which only looks at the frozen backbone."""
    scores: dict[str, dict[str, Tensor]] = {
        "task posterior, unsure": {},
        "task posterior, distance": {},
    }
    for task in tasks:
        features = describe(system.backbone, system.backbone.encode(task.rows("test"))).double()
        log_posterior = system.posterior.log_prob(features)
        scores["task posterior, unsure"][task.name] = 1 - log_posterior.exp().amax(1)
        scores["task posterior, distance"][task.name] = distance(system.posterior, features)
    return scores


def distance(
    posterior: TaskPosterior, features: Float[Tensor, "examples width"]
) -> Float[Tensor, " examples"]:
    """Return the squared Mahalanobis distance to the nearest class."""
    squared = []
    for mean in posterior.means:
        offset = features - mean
        squared.append(((offset @ posterior.precision) * offset).sum(1))
    return torch.stack(squared).amin(0)


def entropy(probabilities: Probabilities) -> Float[Tensor, " examples"]:
    return torch.special.entr(probabilities).sum(1)


def area(positive: Float[Tensor, " held_out"], negative: Float[Tensor, " learned"]) -> float:
    """Return the probability that a positive score is above a negative one; ties count half."""
    difference = positive[:, None] - negative[None, :]
    return ((difference > 0).double() + (difference == 0).double() / 2).mean().item()


def show(rows: Sequence[dict[str, str]]) -> None:
    """Print mean ± standard deviation over the runs."""
    for name in rows[0]:
        if name in ("run", "seed", "held out"):
            continue
        values = [float(row[name]) for row in rows]
        deviation = np.std(values, ddof=1) if len(values) > 1 else 0.0
        print(f"{name}: {np.mean(values):.3g} ± {deviation:.2g}")


if __name__ == "__main__":
    main()
