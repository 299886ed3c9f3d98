"""Heads in closed form on the combined model, whose outputs are comparable across tasks.

Each head was trained on the classes of its own task, so the outputs of two heads are not
comparable, and a model that joins them needs the task posterior. The statistics behind the
posterior can be carried over from the frozen backbone's features x to the features y of the
combined model. Linear discriminant analysis on y then gives one classifier for all classes,
which needs no posterior.

The examples are gone, so the drift from x to y is estimated on random texts or images. This
is an approximation: it is exact only if the drift is the same affine map for all inputs.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from perdure.errors import InputError, NotFinite
from perdure.evaluation.posterior import TaskPosterior, describe, scaled
from perdure.evaluation.random_inputs import random_inputs
from perdure.evaluation.score import features
from perdure.evaluation.system import System
from perdure.vectors.drift import Drift

RIDGE = 0.1
"""The ridge of the regression of y on x, relative to the mean variance of x.

On the demo and CLINC150, 0.1 was better than 0.001 and 0.01 at predicting the features of
random texts (of at most 8 tokens) that were not used for the fit.
"""


def check_closed_form(system: System) -> None:
    """Check that heads in closed form can replace the heads of a system.

    Raises
    ------
    InputError
        All tasks share one output; or a class has no training examples, and therefore no
        mean.
    """
    backbone = system.backbone
    if not backbone.has_heads or system.shares_head:
        raise InputError(
            "A head in closed form replaces the heads of several tasks, but here all tasks share "
            "one output. Leave `--heads` out."
        )
    for task in system.learned:
        for name, count in zip(task.classes, task.statistics.counts.tolist(), strict=True):
            if not count:
                raise InputError(
                    f"The class `{name}` of task `{task.name}` had no training examples, so it "
                    "has no mean for a head in closed form. Use `--heads joined`."
                )


def closed_form_heads(system: System) -> dict[str, Mapping[str, Tensor]]:
    """Return the weights and biases of a head in closed form for each task, by task name.

    All tasks are equally likely, as for the task posterior, and the shrinkage is that of the
    posterior. The heads that the backbone has are not changed.

    Raises
    ------
    InputError
        See `check_closed_form`.
    NotFinite
        The combined model gives no finite features.
    """
    check_closed_form(system)
    drift = _drift(system)
    carried = {task.name: drift.carried(task.statistics) for task in system.learned}
    posterior = TaskPosterior(carried, shrinkage=system.settings.shrinkage)
    weight, bias = posterior.classifier
    heads: dict[str, Mapping[str, Tensor]] = {}
    for name, of_task, of_bias in zip(
        posterior.tasks,
        weight.float().split(posterior.sizes),
        bias.float().split(posterior.sizes),
        strict=True,
    ):
        # Copies, because a part of a split shares the memory of the whole.
        heads[name] = {"weight": of_task.clone(), "bias": of_bias.clone()}
    return heads


def _drift(system: System) -> Drift:
    """Estimate how the features that heads read differ from those of the frozen backbone."""
    examples = random_inputs(system.backbone)
    x = scaled(describe(system.backbone, examples), system.settings.features)
    y = features(system.backbone, system.combined, examples)
    if not y.isfinite().all():
        raise NotFinite(
            f"The rule `{system.rule.label}` gives features that are not finite numbers. "
            "Choose a smaller `scale`, or another rule."
        )
    return Drift.fitted(x, y, ridge=RIDGE)
