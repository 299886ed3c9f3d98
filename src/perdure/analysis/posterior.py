"""The confusion of the task posterior, and how well calibrated it and the classes are."""

import torch
from torch import Tensor

from perdure.analysis.shared import number
from perdure.analysis.subject import Subject
from perdure.evaluation.calibration import confusion, expected_calibration_error, reliability
from perdure.evaluation.posterior import describe
from perdure.evaluation.score import probabilities, settled, task_logits


def compute(subject: Subject) -> dict[str, object]:
    """Return the numbers of this diagnostic for a run."""
    posterior = subject.system.posterior
    backbone = subject.backbone
    tasks = subject.tasks
    combined = subject.combined(len(subject.learned))
    # Where each task's classes are among those of all tasks.
    choices = {name: subject.stream.task(name).classes for name in tasks}
    class_index = [subject.stream.class_index(name) for name in tasks]
    examples = subject.encoded("test")
    true_tasks = []
    task_probabilities = []
    class_probabilities = []
    for name, rows in zip(subject.present, examples, strict=True):
        task = tasks.index(name)
        described = describe(backbone, rows)
        log_weights = posterior.log_prob(described)
        # A rule that picks one task's model per example acts on the likeliest task alone.
        acting = settled(log_weights) if combined.picks else log_weights
        logits = task_logits(
            backbone,
            combined,
            rows,
            choices,
            acting,
        )
        true_tasks.append(torch.full((len(rows),), task))
        # The confidence in the task is the posterior's, even where the rule rounds it to 0 or 1.
        task_probabilities.append(log_weights.exp())
        class_probabilities.append(probabilities(logits, class_index, acting))

    answers = torch.cat(true_tasks)
    weights = torch.cat(task_probabilities)
    labels = torch.cat(subject.labels(examples))
    classes = torch.cat(class_probabilities)
    counts = confusion(answers, weights.argmax(1), len(tasks))
    return {
        "confusion": counts.tolist(),
        **_calibration("task", weights, answers),
        **_calibration("class", classes, labels),
    }


def _calibration(kind: str, probability: Tensor, answer: Tensor) -> dict[str, object]:
    """Return the calibration error and the reliability table, under the names of their `kind`."""
    # The confidence is the probability of the answer, which is the likeliest one.
    best = probability.max(1)
    table = reliability(best.values, best.indices == answer)
    error = expected_calibration_error(table)
    rows = []
    for bin in table:
        # The columns of the format are the fields in their order.
        fields = vars(bin).values()
        rows.append([number(value) for value in fields])
    return {
        f"{kind}_ece": number(error),
        f"{kind}_bins": rows,
    }
