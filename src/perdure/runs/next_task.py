"""Learn the next task of a run: train it, compute its statistics and align the heads."""

import time
from collections.abc import Callable, Mapping
from dataclasses import replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from perdure.data.task import Split, Task, TaskStream
from perdure.evaluation.posterior import PosteriorSettings, check_scalable, describe, scaled
from perdure.evaluation.score import features
from perdure.evaluation.system import Learned, System
from perdure.evaluation.validation import Validation
from perdure.learning.alignment import Alignment, align
from perdure.learning.loop import Session, learn
from perdure.learning.snapshot import Snapshot, size_of
from perdure.models.adapters import Parameters, same
from perdure.models.backbone import Backbone
from perdure.runs.job import Plan
from perdure.runs.resume import belonging
from perdure.vectors.gaussians import Gaussians
from perdure.vectors.statistics import Statistics


def learn_next(system: System, plan: Plan, session: Session) -> Learned:
    """Learn the next task of a plan, and return everything that is stored about it.

    `system` contains the tasks learned so far. Afterwards, its backbone has learned the
    new task, too. A `task` event records the cost of learning; it counts only if the
    task's folder exists.
    """
    backbone = system.backbone
    seen = plan.stream.until(len(system.learned) + 1)
    task = seen[-1]
    heads_before = _heads(backbone)
    # If training was interrupted, the time before the interruption counts as well.
    inside = session.resume
    started = time.perf_counter() - (inside.about["seconds"] if inside else 0.0)
    session = replace(session, keep=_kept(session.keep, belonging(plan, seen), started))
    adapter = learn(
        backbone,
        seen.tasks,
        plan.method,
        plan.training,
        earlier=[old.adapter for old in system.learned],
        session=session,
    )
    # The task posterior uses features of the frozen backbone.
    rows = backbone.encode(task.rows("train"))
    described, groups = _modelled(backbone, task, "train", plan.posterior)
    statistics = Statistics.of(described, groups, task.group_count)
    learned = Learned(
        classes=task.classes,
        adapter=adapter,
        heads={},
        statistics=statistics,
        state=dict(plan.method.state),
        digests=task.digests(),
        validation=_validated(backbone, task, statistics, plan.posterior),
    )
    if plan.training.alignment:
        longer = system.with_task(learned)
        gaussians = _align(longer, task, plan.training.alignment, seed=plan.seed)
        learned = replace(learned, gaussians=gaussians)
    # After the alignment, which changes the heads of older tasks, too.
    owners = [task.name] if plan.training.shares_head else seen.names
    learned = replace(learned, heads=_changed(_heads(backbone), heads_before, owners))
    if session.log:
        seconds = time.perf_counter() - started
        session.log(_event(plan, seen, learned, seconds=seconds, examples=len(rows)))
    return learned


def _modelled(
    backbone: Backbone, task: Task, split: Split, settings: PosteriorSettings
) -> tuple[Float[Tensor, "examples features"], Int[Tensor, " examples"]]:
    """Return the features of a task's examples that the task posterior models, and their groups.

    Raises
    ------
    TrainingError
        A feature vector is zero and therefore cannot be scaled to unit length.
    """
    described = describe(backbone, backbone.encode(task.rows(split)))
    if settings.features == "unit":
        check_scalable(described, task.name, split)
    return scaled(described, settings.features), torch.tensor(task.groups(split))


def _validated(
    backbone: Backbone, task: Task, statistics: Statistics, settings: PosteriorSettings
) -> Validation | None:
    """Return what a task's validation examples say about its Gaussians, if it is needed."""
    if settings.temperature != "fitted":
        return None
    described, groups = _modelled(backbone, task, "validation", settings)
    return Validation.of(statistics, described, groups)


def _event(
    plan: Plan, seen: TaskStream, learned: Learned, *, seconds: float, examples: int
) -> dict[str, object]:
    """Return the event that records the cost of learning a task."""
    return {
        "event": "task",
        "task": learned.name,
        "seconds": round(seconds, 3),
        "examples": examples,
        "trained": trained_values(plan, seen),
        "store_bytes": plan.method.store_bytes,
        "state_bytes": size_of(learned.state),
    }


def _kept(
    keep: Callable[[Snapshot], None] | None, belongs_to: Mapping[str, object], started: float
) -> Callable[[Snapshot], None] | None:
    """Return a `keep` function that adds `belongs_to` and the elapsed seconds to each snapshot."""
    if keep is None:
        return None

    def kept(snapshot: Snapshot) -> None:
        about = {"belongs_to": belongs_to, "seconds": time.perf_counter() - started}
        keep(replace(snapshot, about=snapshot.about | about))

    return kept


def _heads(backbone: Backbone) -> dict[str, Parameters]:
    return {name: backbone.own_state(name) for name in backbone.heads}


def _changed(
    after: Mapping[str, Parameters], before: Mapping[str, Parameters], owners: list[str]
) -> dict[str, Parameters]:
    """Return the heads that training has added or changed."""
    changed = {}
    for name in owners:
        if name not in after:  # a language model has no heads
            continue
        if name not in before or not same(after[name], before[name]):
            changed[name] = after[name]
    return changed


def _align(system: System, task: Task, settings: Alignment, *, seed: int) -> Gaussians:
    """Align the heads of all tasks of a system, and return the Gaussians of the latest task."""
    backbone = system.backbone
    rows = backbone.encode(task.rows("train"))
    # With the combined model, whose features all heads read when they answer together.
    values = features(backbone, system.combined, rows).cpu()
    newest = Gaussians.of(values, torch.tensor(rows.labels), len(task.classes))
    gaussians = {old.name: old.gaussians for old in system.learned if old.gaussians}
    gaussians[task.name] = newest
    # Another seed after each task; a thousand apart, so that runs with nearby seeds share none.
    step_seed = seed + 1000 * len(gaussians)
    align(backbone, gaussians, system.classes, settings, seed=step_seed)
    return newest


def trained_values(plan: Plan, seen: TaskStream) -> int:
    """Return the number of trained parameters, excluding frozen matrices and untrained heads."""
    # A method may list heads among its own parameters; each counts once.
    counted = {id(parameter) for parameter in plan.method.parameters(plan.backbone)}
    number = plan.method.trained(plan.backbone)
    names = {rows.task for rows in plan.method.examples(seen.tasks)}
    for name in names:
        for parameter in plan.backbone.own(name).parameters():
            if id(parameter) not in counted:
                counted.add(id(parameter))
                number += parameter.numel()
    return number
