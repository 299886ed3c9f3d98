"""Classifier alignment: train the heads of all tasks together, on samples of what is remembered of each class.

Each head was trained with its own classes only; nothing has made its logits comparable with those of other heads. A
class is remembered as a Gaussian of its features, so that no example is kept.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch
from annotated_types import Ge, Gt, Le
from jaxtyping import Float
from torch import Tensor

from perdure.models.backbone import Backbone
from perdure.vectors.gaussians import Gaussians

RIDGE = 1e-4


@dataclass(frozen=True, kw_only=True)
class Alignment:
    """How heads are aligned after each task: SGD with momentum, cosine decay.

    Parameters
    ----------
    epochs
        In each of them `samples` features of each class are drawn anew.
    batch_size
        Samples in a step.
    shrinkage
        Means of older classes are drawn towards zero, because their features have drifted since: they are multiplied
        by 1 - s + s · (t + 1) / T, for a class of task t of T.
    temperature
        Logits are divided by their norm (per head, averaged over heads) and by this, so that no head wins by its
        scale alone; `null`: they are taken as they are.

    References
    ----------
    Zhang et al., SLCA: Slow Learner with Classifier Alignment, arXiv 2303.05118; with InfLoRA: arXiv 2404.00228. As
    there, 1e-4 is added to the diagonal of each covariance; here 1e-4 times the mean variance, where that is above 1.
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
    """Train the heads of these tasks together, in place. With one task there is nothing to align.

    Parameters
    ----------
    gaussians
        By task name, in the order in which they were learned: features as the heads get them.
    classes
        The names of each task's classes; of the same name in several tasks they are one class.
    """
    if len(gaussians) < 2:
        return
    random = torch.Generator().manual_seed(seed)
    names = np.array([name for task in gaussians for name in classes[task]])
    same = torch.tensor(names[:, None] == names).to(backbone.device)
    means, roots = _prepared(gaussians, settings)
    heads = [backbone.own(task).requires_grad_(True) for task in gaussians]
    parameters = [parameter for head in heads for parameter in head.parameters()]
    optimizer = torch.optim.SGD(
        parameters, lr=settings.learning_rate, momentum=0.9, weight_decay=settings.weight_decay
    )
    for epoch in range(settings.epochs):
        for group in optimizer.param_groups:
            group["lr"] = (
                settings.learning_rate * 0.5 * (1 + math.cos(math.pi * epoch / settings.epochs))
            )
        noise = torch.randn(settings.samples, *means.shape, generator=random)
        features = (
            (means + torch.einsum("cij,ncj->nci", roots, noise)).flatten(0, 1).to(backbone.device)
        )
        answers = torch.arange(len(means)).repeat(settings.samples).to(backbone.device)
        for rows in torch.randperm(len(answers), generator=random).split(settings.batch_size):
            logits = _balanced([head(features[rows]) for head in heads], settings.temperature)
            right = logits.log_softmax(1).masked_fill(~same[answers[rows]], -torch.inf)
            loss = -right.logsumexp(1).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()


def _prepared(
    gaussians: Mapping[str, Gaussians], settings: Alignment
) -> tuple[Float[Tensor, "classes features"], Float[Tensor, "classes features features"]]:
    """Means, shrunk by age, and the roots L of the covariances L Lᵀ."""
    T, s = len(gaussians), settings.shrinkage
    means = [(1 - s + s * (t + 1) / T) * of.means for t, of in enumerate(gaussians.values())]
    covariances = torch.cat([of.covariances for of in gaussians.values()]).double()
    d = covariances.shape[-1]
    # relative to features of large scale, whose covariances single precision leaves with larger errors
    ridges = RIDGE * (covariances.diagonal(dim1=1, dim2=2).sum(1) / d).clamp_min(1)
    covariances = covariances + ridges[:, None, None] * torch.eye(d, dtype=torch.double)
    return torch.cat(means).float(), torch.linalg.cholesky(covariances).float()


def _balanced(logits: list[Tensor], temperature: float | None) -> Float[Tensor, "batch classes"]:
    joined = torch.cat(logits, dim=1)
    if temperature is None:
        return joined
    norms = torch.stack([part.norm(dim=1) for part in logits]).mean(0) + 1e-7
    return joined / norms[:, None] / temperature
