"""The confusion between tasks, and the calibration of task and class probabilities."""

import torch
from torch import Tensor

from perdure.analysis.shared import number
from perdure.analysis.subject import Subject
from perdure.evaluation.calibration import confusion, expected_calibration_error, reliability
from perdure.evaluation.posterior import describe
from perdure.evaluation.score import probabilities, settled, task_logits


def compute(subject: Subject) -> dict[str, object]:
    """Return a run's confusion between tasks, and the calibration of task and class probabilities.

    The numbers are plain lists and numbers, as in diagnostics.json.
    """
    posterior = subject.system.posterior
    backbone = subject.backbone
    tasks = subject.tasks
    combined = subject.combined(len(subject.learned))
    # A task that is answered with free text is in the confusion matrix, but has no classes.
    closed = [number for number, name in enumerate(tasks) if subject.stream.task(name).classes]
    choices = {tasks[number]: subject.stream.task(tasks[number]).classes for number in closed}
    # The indices of each task's classes among the classes of all tasks.
    class_index = {name: subject.stream.class_index(name) for name in choices}
    examples = subject.encoded("test")
    true_tasks = []
    task_probabilities = []
    # Without any classes there is nothing to calibrate, which is not an error.
    class_probabilities = [torch.empty(0, max(1, len(subject.stream.classes)))]
    labels = [torch.empty(0, dtype=torch.long)]
    for name, rows in zip(subject.present, examples, strict=True):
        task = tasks.index(name)
        described = describe(backbone, rows)
        log_weights = posterior.log_prob(described)
        true_tasks.append(torch.full((len(rows),), task))
        # The confidence in the task is the posterior's, even where the rule rounds it to 0 or 1.
        task_probabilities.append(log_weights.exp())
        if name not in choices:
            continue
        log_weights = log_weights[:, closed]
        # A rule that picks one task's model per example uses only the most likely task.
        acting = settled(log_weights) if combined.picks else log_weights
        logits = task_logits(
            backbone,
            combined,
            rows,
            choices,
            acting,
        )
        class_probabilities.append(probabilities(logits, list(class_index.values()), acting))
        labels.append(torch.tensor(class_index[name])[torch.tensor(rows.labels)])

    answers = torch.cat(true_tasks)
    weights = torch.cat(task_probabilities)
    classes = torch.cat(class_probabilities)
    counts = confusion(answers, weights.argmax(1), len(tasks))
    return {
        "confusion": counts.tolist(),
        **_calibration("task", weights, answers),
        **_calibration("class", classes, torch.cat(labels)),
    }


def _calibration(kind: str, probability: Tensor, answer: Tensor) -> dict[str, object]:
    """Return the calibration error and the reliability table, with keys that start with `kind`."""
    # The confidence is the probability of the predicted answer, the most likely one.
    best = probability.max(1)
    table = reliability(best.values, best.indices == answer)
    error = expected_calibration_error(table)
    rows = []
    for bin in table:
        # The columns in the file are the fields in this order.
        fields = vars(bin).values()
        rows.append([number(value) for value in fields])
    return {
        f"{kind}_ece": number(error),
        f"{kind}_bins": rows,
    }
