"""Probe retraining: how much a linear classifier can read from frozen features, step by step.

An analysis and not a method: the classifier is trained on examples of *all* tasks at once (Kim & Han 2023, arXiv
2304.01663). A curve that rises says that the features gained from the new tasks; a flat one that they are stable but
not plastic; one that falls that something in them was lost.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from perdure.analysis.shared import plain
from perdure.analysis.subject import Subject

STEPS = 200  # of L-BFGS at most


@dataclass(frozen=True)
class Probe:
    """A linear classifier on standardised features: multinomial logistic regression, fitted from zero by L-BFGS.

    It minimises the mean cross-entropy + ‖W‖² / (2 n) over n examples, which is convex, so the start does not matter;
    the bias is not penalised. Features that do not vary are only centred.

    Examples
    --------
    >>> features, labels = torch.tensor([[-2.0], [-1.0], [1.0], [2.0]]), torch.tensor([0, 0, 1, 1])
    >>> Probe.fitted(features, labels, classes=2).predict(torch.tensor([[-5.0], [0.5]])).tolist()
    [0, 1]
    """

    mean: Float[Tensor, " width"]
    scale: Float[Tensor, " width"]
    weight: Float[Tensor, "classes width"]
    bias: Float[Tensor, " classes"]

    @classmethod
    def fitted(
        cls,
        features: Float[Tensor, "examples width"],
        labels: Int[Tensor, " examples"],
        classes: int,
    ) -> Probe:
        """The classifier of examples with labels from 0 to `classes` - 1."""
        x = features.detach().double().cpu()
        mean, scale = x.mean(0), x.std(0, correction=0)
        scale = torch.where(scale > 1e-9 * (1 + mean.abs()), scale, torch.ones_like(scale))
        x = (x - mean) / scale
        weight = torch.zeros(classes, x.shape[1], dtype=torch.double, requires_grad=True)
        bias = torch.zeros(classes, dtype=torch.double, requires_grad=True)
        search = torch.optim.LBFGS(
            [weight, bias],
            max_iter=STEPS,
            tolerance_grad=1e-5,
            tolerance_change=1e-9,
            line_search_fn="strong_wolfe",
        )

        def loss() -> Tensor:
            search.zero_grad()
            value = torch.nn.functional.cross_entropy(x @ weight.T + bias, labels.cpu())
            value = value + weight.square().sum() / (2 * len(x))
            value.backward()
            return value

        with torch.enable_grad():
            search.step(loss)  # pyright: ignore
        return cls(mean, scale, weight.detach(), bias.detach())

    def predict(self, features: Float[Tensor, "examples width"]) -> Int[Tensor, " examples"]:
        """The likeliest class of each example."""
        x = (features.detach().double().cpu() - self.mean) / self.scale
        return (x @ self.weight.T + self.bias).argmax(1)


def plasticity(A: Float[Tensor, "steps tasks"]) -> Float[Tensor, " tasks"]:
    """What learning a task gave to a probe's accuracy on it: A[j, j] - A[j-1, j].

    A[i, j] is the accuracy on task j after i tasks, from 0 (the pre-trained model), with the tasks counted from 1.

    Examples
    --------
    >>> plasticity(torch.tensor([[0.5, 0.5], [0.75, 0.5], [0.625, 1.0]])).tolist()
    [0.25, 0.5]
    """
    return A.diagonal(-1) - A.diagonal()


def stability(A: Float[Tensor, "steps tasks"]) -> Float[Tensor, " tasks"]:
    """What later tasks did to a probe's accuracy on a task: A[N, j] - A[j, j] with N tasks; 0 for the last.

    Examples
    --------
    >>> stability(torch.tensor([[0.5, 0.5], [0.75, 0.5], [0.625, 1.0]])).tolist()
    [-0.125, 0.0]
    """
    return A[-1] - A.diagonal(-1)


def compute(subject: Subject) -> dict[str, Any]:
    """Return the numbers of this diagnostic for a run."""
    train, test = subject.encoded("train"), subject.encoded("test")
    labels, answers = torch.cat(subject.labels(train)), subject.labels(test)
    rows: list[list[float]] = []
    present = [subject.tasks.index(name) for name in subject.present]
    for step in range(len(subject.learned) + 1):
        if rows and subject.frozen:  # the same features at every step
            rows.append(rows[0])
            continue
        known = torch.cat(subject.features(subject.combined(step), train))
        probe = Probe.fitted(known, labels, len(subject.stream.classes))
        found = [probe.predict(each) for each in subject.tested(step)]
        rows.append([(a == b).double().mean().item() for a, b in zip(found, answers, strict=True)])
    A = torch.full((len(rows), len(subject.tasks)), math.nan, dtype=torch.double)
    A[:, present] = torch.tensor(rows, dtype=torch.double)
    return {
        "accuracy": plain(A[:, present].mean(1)),
        "subset": plain(A),
        "plasticity": plain(plasticity(A)),
        "stability": plain(stability(A)),
    }
