"""Linear probes: classifiers that are trained on the frozen features after each task.

This is an analysis, not a method: each classifier is trained on examples of *all* tasks
(Kim & Han 2023, arXiv 2304.01663). If the accuracy rises, the features have improved with
the new tasks; if it is constant, they are stable but not plastic; if it falls, they have
lost information.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from perdure.analysis.shared import LeftOut, plain
from perdure.analysis.subject import Subject

STEPS = 200  # the maximum number of L-BFGS iterations


@dataclass(frozen=True)
class Probe:
    """A linear classifier on standardised features: multinomial logistic regression by L-BFGS.

    The classifier minimises the mean cross-entropy + ‖W‖² / (2 n) over n examples,
    starting from zero. The objective is convex, so the initial weights do not matter; the
    bias is not penalised. Constant features are only centred.

    Examples
    --------
    >>> features = torch.tensor([[-2.0], [-1.0], [1.0], [2.0]])
    >>> probe = Probe.fitted(features, torch.tensor([0, 0, 1, 1]), classes=2)
    >>> probe.predict(torch.tensor([[-5.0], [0.5]])).tolist()
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
        """Fit a classifier to examples with labels from 0 to `classes` - 1."""
        x = features.detach().double().cpu()
        mean = x.mean(0)
        scale = x.std(0, correction=0)
        # The deviation of a constant feature is a rounding error and must not be scaled up to 1.
        varies = scale > 1e-9 * (1 + mean.abs())
        scale = torch.where(varies, scale, torch.ones_like(scale))
        x = (x - mean) / scale
        weight = torch.zeros(classes, x.shape[1], dtype=torch.double).requires_grad_()
        bias = torch.zeros(classes, dtype=torch.double).requires_grad_()
        optimizer = torch.optim.LBFGS(
            [weight, bias],
            max_iter=STEPS,
            tolerance_grad=1e-5,
            tolerance_change=1e-9,
            line_search_fn="strong_wolfe",
        )

        # The line search calls this several times in each step.
        def loss() -> Tensor:
            optimizer.zero_grad()
            logits = x @ weight.T + bias
            error = torch.nn.functional.cross_entropy(logits, labels.cpu())
            # Half the squared norm over n, as in scikit-learn's LogisticRegression with C = 1.
            penalty = weight.square().sum() / (2 * len(x))
            value = error + penalty
            value.backward()
            return value

        # The caller may use `no_grad`, but fitting needs gradients.
        with torch.enable_grad():
            optimizer.step(loss)  # pyright: ignore
        return cls(
            mean=mean,
            scale=scale,
            weight=weight.detach(),
            bias=bias.detach(),
        )

    def predict(self, features: Float[Tensor, "examples width"]) -> Int[Tensor, " examples"]:
        """Return the most likely class of each example."""
        x = (features.detach().double().cpu() - self.mean) / self.scale
        logits = x @ self.weight.T + self.bias
        return logits.argmax(1)


def plasticity(A: Float[Tensor, "steps tasks"]) -> Float[Tensor, " tasks"]:
    """Return each task's plasticity, its gain in accuracy when it is learned: A[j, j] - A[j-1, j].

    A[i, j] is the accuracy of a probe on task j after i tasks, where i = 0 is the
    pre-trained model and tasks are counted from 1.

    Examples
    --------
    >>> plasticity(torch.tensor([[0.5, 0.5], [0.75, 0.5], [0.625, 1.0]])).tolist()
    [0.25, 0.5]
    """
    # Rows start at step 0 and columns at task 1, so A[j, j] is one below the diagonal.
    return A.diagonal(-1) - A.diagonal()


def stability(A: Float[Tensor, "steps tasks"]) -> Float[Tensor, " tasks"]:
    """Return each task's stability, its change in accuracy after it is learned: A[N, j] - A[j, j].

    A[i, j] is the accuracy of a probe on task j after i of the N tasks, where tasks are
    counted from 1. The stability of the last task is 0.

    Examples
    --------
    >>> stability(torch.tensor([[0.5, 0.5], [0.75, 0.5], [0.625, 1.0]])).tolist()
    [-0.125, 0.0]
    """
    return A[-1] - A.diagonal(-1)


def compute(subject: Subject) -> dict[str, object]:
    """Return the accuracy of a run's probes after each task, with plasticity and stability."""
    free = [name for name in subject.tasks if not subject.stream.task(name).classes]
    if free:
        raise LeftOut(
            f"A probe tells classes apart, and task `{free[0]}` has none: it is answered with free "
            "text."
        )
    train = subject.encoded("train")
    test = subject.encoded("test")
    labels = torch.cat(subject.labels(train))
    answers = subject.labels(test)
    classes = len(subject.stream.classes)
    rows = []
    for step in range(len(subject.learned) + 1):
        # A frozen backbone has the same features at every step, so one probe is enough.
        if rows and subject.frozen:
            rows.append(rows[0])
            continue
        combined = subject.combined(step)
        features = torch.cat(subject.features(combined, train))
        probe = Probe.fitted(features, labels, classes)
        accuracies = []
        for tested, answer in zip(subject.tested(step), answers, strict=True):
            right = probe.predict(tested) == answer
            accuracies.append(right.double().mean().item())
        rows.append(accuracies)

    # The format has a column for each task, including those whose examples are missing.
    tasks = subject.tasks
    present = [tasks.index(name) for name in subject.present]
    accuracy = torch.tensor(rows, dtype=torch.double)
    A = torch.full(
        (len(rows), len(tasks)),
        math.nan,
        dtype=torch.double,
    )
    A[:, present] = accuracy
    return {
        "accuracy": plain(accuracy.mean(1)),
        "subset": plain(A),
        "plasticity": plain(plasticity(A)),
        "stability": plain(stability(A)),
    }
