"""Which task the posterior finds for an input, and whether its confidence is the share that is right."""

from typing import Any

import torch

from perdure.analysis.calibration import confusion, expected_calibration_error, reliability
from perdure.analysis.shared import number
from perdure.analysis.subject import Subject
from perdure.evaluation.posterior import describe
from perdure.evaluation.score import probabilities, settled, task_logits


def compute(subject: Subject) -> dict[str, Any]:
    """Return the numbers of this diagnostic for a run."""
    posterior = subject.system.posterior
    combined, tasks = subject.combined(len(subject.learned)), subject.tasks
    places = [subject.stream.class_index(name) for name in tasks]
    examples = subject.encoded("test")
    true, weights, classes = [], [], []
    for name, rows in zip(subject.present, examples, strict=True):
        index = tasks.index(name)
        log_weights = posterior.log_prob(describe(subject.backbone, rows))
        acting = settled(log_weights) if combined.picks else log_weights
        logits = task_logits(subject.backbone, combined, rows, tasks, acting)
        true.append(torch.full((len(rows),), index))
        weights.append(log_weights.exp())
        classes.append(probabilities(logits, places, acting))
    tables = {
        "task": (torch.cat(weights), torch.cat(true)),
        "class": (torch.cat(classes), torch.cat(subject.labels(examples))),
    }
    found: dict[str, Any] = {
        "confusion": confusion(torch.cat(true), torch.cat(weights).argmax(1), len(tasks)).tolist()
    }
    for name, (probability, answer) in tables.items():
        best = probability.max(1)
        table = reliability(best.values, best.indices == answer)
        found[f"{name}_ece"] = number(expected_calibration_error(table))
        found[f"{name}_bins"] = [[number(value) for value in vars(bin).values()] for bin in table]
    return found
