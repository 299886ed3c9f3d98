"""Classifier alignment: train all heads jointly on features sampled from remembered classes.

Each head was trained on the classes of one task only, so its logits are not comparable
with those of other heads. Each class is remembered as a Gaussian over its features; no
examples are stored.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch
from annotated_types import Ge, Gt, Le
from jaxtyping import Bool, Float
from torch import Tensor, nn

from perdure.models.backbone import Backbone
from perdure.vectors.gaussians import Gaussians

RIDGE = 1e-4
"""The ridge added to a covariance's diagonal, relative to its mean variance, or to 1 if that is
larger.
"""


@dataclass(frozen=True, kw_only=True)
class Alignment:
    """Settings for aligning the heads after each task: SGD with momentum and cosine decay.

    Parameters
    ----------
    epochs
        The number of epochs. Each epoch draws `samples` new feature vectors per class.
    batch_size
        The number of feature vectors per step.
    shrinkage
        The strength s with which the means of older classes are shrunk towards zero,
        because their features have drifted. The means of task t of T, counted from 0, are
        multiplied by 1 - s + s · (t + 1) / T.
    temperature
        Logits are divided by this value and by their norm (computed per head and averaged
        over heads), so that no head wins by scale alone. With `null` they are not
        divided.

    References
    ----------
    Zhang et al., SLCA: Slow Learner with Classifier Alignment, arXiv 2303.05118; used with
    InfLoRA: arXiv 2404.00228. The authors add 1e-4 to the diagonal of each covariance; perdure
    adds 1e-4 times the mean variance if that variance is above 1.
    """

    epochs: Annotated[int, Ge(1)] = 5
    samples: Annotated[int, Ge(1)] = 256
    batch_size: Annotated[int, Ge(1)] = 256
    learning_rate: Annotated[float, Gt(0)] = 0.01
    weight_decay: Annotated[float, Ge(0)] = 5e-4
    shrinkage: Annotated[float, Ge(0), Le(1)] = 0.1
    temperature: Annotated[float, Gt(0)] | None = 0.1


def align(
    backbone: Backbone,
    gaussians: Mapping[str, Gaussians],
    classes: Mapping[str, Sequence[str]],
    settings: Alignment,
    *,
    seed: int,
) -> None:
    """Train the heads of all given tasks jointly, in place; do nothing if there is only one task.

    Parameters
    ----------
    gaussians
        The Gaussians of each task's classes, over the features that the heads receive.
        The keys are task names, in the order in which the tasks were learned.
    classes
        The class names of each task. Classes with the same name in several tasks count as one.
    """
    if len(gaussians) < 2:
        return
    random = torch.Generator().manual_seed(seed)
    same = _same_names(gaussians, classes).to(backbone.device)
    means, roots = _prepared(gaussians, settings)
    # Heads of finished tasks were frozen when the last task was learned.
    heads = [backbone.own(task).requires_grad_(True) for task in gaussians]
    optimizer = _optimizer(heads, settings)

    for epoch in range(settings.epochs):
        progress = epoch / settings.epochs
        decay = 0.5 * (1 + math.cos(math.pi * progress))
        for group in optimizer.param_groups:
            group["lr"] = settings.learning_rate * decay

        # L z + μ with z ~ N(0, I) has the covariance L Lᵀ. n: sample, c: class, i and j:
        # features. Drawn on the CPU, so that a seed gives the same samples on every
        # device.
        noise = torch.randn(
            settings.samples,
            *means.shape,
            generator=random,
        )
        drawn = means + torch.einsum("cij,ncj->nci", roots, noise)
        features = drawn.flatten(0, 1).to(backbone.device)
        answers = torch.arange(len(means)).repeat(settings.samples)
        answers = answers.to(backbone.device)

        order = torch.randperm(len(answers), generator=random)
        for rows in order.split(settings.batch_size):
            inputs = features[rows]
            logits = _balanced(
                [head(inputs) for head in heads],
                settings.temperature,
            )
            # An answer is right if it names the class, in whichever task: the
            # probabilities of all classes with that name are added.
            wrong = ~same[answers[rows]]
            log_p = logits.log_softmax(1)
            right = log_p.masked_fill(wrong, -torch.inf)
            loss = -right.logsumexp(1).mean()

            optimizer.zero_grad()
            loss.backward()
            optimizer.step()


def _same_names(
    gaussians: Mapping[str, Gaussians], classes: Mapping[str, Sequence[str]]
) -> Bool[Tensor, "classes classes"]:
    """Return a matrix that is True for each pair of classes, of any tasks, with the same name."""
    names: list[str] = []
    for task in gaussians:
        names += classes[task]
    row = np.array(names)
    column = row[:, None]
    return torch.tensor(column == row)


def _optimizer(heads: Sequence[nn.Module], settings: Alignment) -> torch.optim.Optimizer:
    parameters: list[nn.Parameter] = []
    for head in heads:
        parameters += head.parameters()
    return torch.optim.SGD(
        parameters,
        lr=settings.learning_rate,
        momentum=0.9,
        weight_decay=settings.weight_decay,
    )


def _prepared(
    gaussians: Mapping[str, Gaussians], settings: Alignment
) -> tuple[Float[Tensor, "classes features"], Float[Tensor, "classes features features"]]:
    """Return the class means, shrunk by age, and the Cholesky factors L of the covariances L Lᵀ."""
    # T: tasks, t: this task, s: shrinkage, C: covariances, d: features
    T = len(gaussians)
    s = settings.shrinkage
    means: list[Tensor] = []
    covariances: list[Tensor] = []
    for t, task in enumerate(gaussians.values()):
        factor = 1 - s + s * (t + 1) / T  # 1 for the latest task
        means.append(factor * task.means)
        covariances.append(task.covariances)
    mean = torch.cat(means).float()
    C = torch.cat(covariances).double()
    d = C.shape[-1]
    # The ridge makes C positive definite, as the Cholesky factorisation requires. It
    # scales with the features: covariances come in single precision, whose errors grow
    # with that scale.
    diagonals = C.diagonal(dim1=1, dim2=2)
    variances = diagonals.sum(1) / d
    ridges = RIDGE * variances.clamp_min(1)
    identity = torch.eye(d, dtype=torch.double)
    C = C + ridges[:, None, None] * identity
    roots = torch.linalg.cholesky(C).float()
    return mean, roots


def _balanced(logits: list[Tensor], temperature: float | None) -> Float[Tensor, "batch classes"]:
    """Concatenate the logits of all heads, divided by their mean norm and by the temperature."""
    joined = torch.cat(logits, dim=1)
    if temperature is None:
        return joined
    norms = []
    for of_head in logits:
        norms.append(of_head.norm(dim=1))
    norm = torch.stack(norms).mean(0)
    norm = norm + 1e-7  # all logits may be zero
    return joined / norm[:, None] / temperature
