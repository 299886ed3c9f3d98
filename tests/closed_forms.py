"""Heads in closed form: what several tasks leave, and their examples as one problem."""

import torch
from small_runs import OPTIMIZER

from perdure.models.backbone import pooled


def learned(method, backbone, tasks):
    """The tasks' heads by name, after all of them."""
    for task in tasks:
        backbone.open(task)
        method.begin(backbone, task)
        method.end(backbone, task, OPTIMIZER)
    return {task.name: backbone.own_state(task.name) for task in tasks}


def together(backbone, tasks, split="train"):
    """Features of all tasks' examples, and labels as if they were one problem."""
    parts, labels, before = [], [], 0
    for task in tasks:
        rows = backbone.encode(task.rows(split))
        parts.append(pooled(backbone, rows))
        labels += [before + label for label in rows.labels]
        before += len(task.classes)
    return torch.cat(parts).double(), torch.tensor(labels)
