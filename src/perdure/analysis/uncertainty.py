"""Answers of a run with a posterior over its weights, averaged over samples of the weights."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from perdure.analysis.subject import EXAMPLES, Subject, subject_of
from perdure.data.task import Task, TaskStream
from perdure.errors import InputError
from perdure.evaluation.calibration import expected_calibration_error, reliability
from perdure.evaluation.score import task_logits
from perdure.evaluation.system import Learned, System
from perdure.learning.snapshot import State
from perdure.methods.parts.posteriors import PREFIX, Posteriors
from perdure.models.adapters import Parameters
from perdure.runs.state import read


@dataclass(frozen=True)
class Uncertainty:
    """The accuracy and the expected calibration error on a task's test examples, task given.

    `accuracy` and `error` are those of the means of the weights, and `averaged_accuracy`
    and `averaged_error` those of the mean probabilities over samples of the weights. All
    are from 0 to 1.
    """

    accuracy: float
    error: float
    averaged_accuracy: float
    averaged_error: float


def uncertainty(
    folder: str | Path,
    *,
    samples: int = 16,
    examples: int = EXAMPLES,
    seed: int = 0,
    stream: TaskStream | None = None,
    trust: bool = False,
) -> dict[str, Uncertainty]:
    """Compare a run's answers with answers that are averaged over its posterior.

    p(y | x) = 1/S Σ_s p(y | x, θ_s), where θ_s is a sample of the weights of the module
    and the heads. The means are those that the model answers with, and σ is that of the
    last posterior. (If the run adapted its means to a coreset, this σ is from before the
    adaptation.)

    Parameters
    ----------
    samples
        The number of samples S.
    examples
        The maximum number of test examples per task.
    seed
        The seed of the samples.
    stream
        The tasks; required if the run's recipe does not describe where they come from.
    trust
        Allow running the Python files that the run's recipe names.

    Returns
    -------
    dict
        The comparison for each task with classes, by task name.

    Raises
    ------
    InputError
        The run's method has no posterior, its rule is not `last`, or `samples` is less than 1.
    """
    if samples < 1:
        raise InputError(f"`samples` must be at least 1, got {samples}.")
    run = read(folder, trust=trust)
    subject = subject_of(run, None, stream, examples)
    if not len(Posteriors(subject.learned[-1].state)):
        raise InputError(
            f"`{folder}` was learned with a method that has no posterior over its weights, as "
            "`vcl` and `td_vcl` have."
        )
    if subject.rule.name != "last":
        raise InputError(
            f"The posterior is that of the last task, but the run has the rule "
            f"`{subject.rule.name}`, which combines several tasks. Use the rule `last`."
        )
    limited = subject.stream.limited(test=examples, seed=seed)
    tasks = [task for task in limited if task.classes and not task.missing]
    at_means = _probabilities(subject, subject.system, tasks, None)
    totals = {name: torch.zeros_like(value) for name, value in at_means.items()}
    for number in range(samples):
        generator = torch.Generator().manual_seed(seed + number)
        sampled = _probabilities(subject, subject.system, tasks, generator)
        for name, value in sampled.items():
            totals[name] += value / samples
    compared = {}
    for task in tasks:
        labels = torch.tensor(subject.backbone.encode(task.rows("test")).labels)
        accuracy, error = _measured(at_means[task.name], labels)
        averaged_accuracy, averaged_error = _measured(totals[task.name], labels)
        compared[task.name] = Uncertainty(accuracy, error, averaged_accuracy, averaged_error)
    return compared


def _measured(probabilities: Float[Tensor, "examples _"], labels: Tensor) -> tuple[float, float]:
    """Return the accuracy and the expected calibration error."""
    confidence, answers = probabilities.max(1)
    right = answers == labels
    table = reliability(confidence, right)
    return right.double().mean().item(), expected_calibration_error(table)


def _probabilities(
    subject: Subject, system: System, tasks: list[Task], generator: torch.Generator | None
) -> dict[str, Float[Tensor, "examples _"]]:
    """Return the class probabilities for each task; with a generator, for sampled weights."""
    backbone = system.backbone
    probabilities = {}
    with loaded_sample(system, generator) as sample:
        for task in tasks:
            rows = backbone.encode(task.rows("test"))
            choices = {task.name: task.classes}
            logits = task_logits(backbone, sample.combined, rows, choices)
            probabilities[task.name] = logits[task.name].double().softmax(1)
    return probabilities


@contextlib.contextmanager
def loaded_sample(system: System, generator: torch.Generator | None) -> Iterator[System]:
    """Load heads with sampled weights while a `with` block runs, and yield the sampled system.

    The sample is from the posterior of the system's last task. Without a generator, it is
    the mean, so the yielded system is `system`.
    """
    last = system.learned[-1]
    sample = system
    if generator is not None:
        adapter = replace(last.adapter, parameters=_sampled_adapter(last, generator))
        sample = replace(system, learned=(*system.learned[:-1], replace(last, adapter=adapter)))
    with sample.loaded():
        if generator is not None:
            with torch.no_grad():
                for name, parameter in _heads(sample):
                    parameter += _noise(last.state, name, parameter, generator)
        yield sample


def _sampled_adapter(last: Learned, generator: torch.Generator) -> Parameters:
    """Return a sample of the adapter's parameters, under the names that peft saves them with."""
    sampled = dict(last.adapter.parameters)
    start = f"{PREFIX}/0/log_sigma/"
    for key in last.state:
        name = key.removeprefix(start)
        # peft leaves the name of the adapter out of the names in its files.
        saved = name.replace(".default", "")
        if key.startswith(start) and saved in sampled:
            mean = sampled[saved]
            sampled[saved] = mean + _noise(last.state, name, mean, generator)
    return sampled


def _heads(system: System) -> Iterator[tuple[str, Tensor]]:
    """Yield each head's parameters that have a posterior, with their names in it."""
    for task in system.tasks:
        for key, parameter in system.backbone.own(task).named_parameters():
            name = f"head/{task}/{key}"
            # A head that tasks share has a posterior under the name of one of them only.
            if Posteriors(system.learned[-1].state).knows(name):
                yield name, parameter


def _noise(state: State, name: str, mean: Tensor, generator: torch.Generator) -> Tensor:
    """Return σ ε for a parameter, drawn on the CPU so that it is the same on every device."""
    _, log_sigma = Posteriors(state).latest(name)
    epsilon = torch.randn(log_sigma.shape, generator=generator)
    return (log_sigma.exp().cpu() * epsilon).to(mean)
