"""Learn the next task of a run: train it, describe its examples, align the heads; return all that is kept of it."""

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch

from perdure.data.task import Task, TaskStream
from perdure.evaluation.posterior import describe
from perdure.evaluation.score import features
from perdure.evaluation.system import Learned, System
from perdure.learning.alignment import Alignment, align
from perdure.learning.loop import Session, learn
from perdure.learning.snapshot import Snapshot
from perdure.models.adapters import Parameters, same
from perdure.models.backbone import Backbone
from perdure.runs.job import Plan
from perdure.runs.resume import belonging
from perdure.vectors.gaussians import Gaussians
from perdure.vectors.statistics import Statistics


def learn_next(system: System, plan: Plan, session: Session) -> Learned:
    """Learn the next task of a plan after those of a system, which the system's backbone then has learned.

    What it took is logged as an event `task`, which counts only with the task's folder.
    """
    backbone, method = system.backbone, plan.method
    seen = plan.stream.until(len(system.learned) + 1)
    task, before = seen[-1], _heads(backbone)
    inside = session.resume
    started = time.perf_counter() - (inside.about["seconds"] if inside else 0.0)
    session = replace(session, keep=_kept(session.keep, belonging(plan, seen), started))
    earlier = [old.adapter for old in system.learned]
    adapter = learn(backbone, seen.tasks, method, plan.training, earlier=earlier, session=session)

    rows = backbone.encode(task.rows("train"))
    learned = Learned(
        classes=task.classes,
        adapter=adapter,
        heads={},
        statistics=Statistics.of(
            describe(backbone, rows), torch.tensor(task.groups("train")), len(task.classes)
        ),
        state=dict(method.state),
        digests=task.digests(),
    )
    if plan.training.alignment:
        gaussians = _align(system.with_task(learned), task, plan.training.alignment, seed=plan.seed)
        learned = replace(learned, gaussians=gaussians)
    owners = [task.name] if plan.training.shares_head else seen.names
    learned = replace(learned, heads=_changed(_heads(backbone), before, owners))
    if session.log:
        about = {
            "seconds": round(time.perf_counter() - started, 3),
            "examples": len(rows),
            "trained": _trained(plan, seen),
            "store_bytes": method.store_bytes,
            "state_bytes": sum(
                value.nbytes for value in learned.state.values() if isinstance(value, torch.Tensor)
            ),
        }
        session.log({"event": "task", "task": learned.name, **about})
    return learned


def _kept(
    keep: Callable[[Snapshot], None] | None, belongs_to: Mapping[str, Any], started: float
) -> Callable[[Snapshot], None] | None:
    """Return what keeps a snapshot together with what it belongs to, and how long the task has taken until then."""
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
) -> dict[str, Any]:
    """Return the heads that training has made or changed."""
    changed = {}
    for name in owners:
        if name not in before or not same(after[name], before[name]):
            changed[name] = after[name]
    return changed


def _align(system: System, task: Task, settings: Alignment, *, seed: int) -> Gaussians:
    """Align the heads of all tasks of a system; return what is to be remembered of the newest."""
    backbone = system.backbone
    rows = backbone.encode(task.rows("train"))
    values = features(backbone, system.combined, rows).cpu()
    newest = Gaussians.of(values, torch.tensor(rows.labels), len(task.classes))
    gaussians = {old.name: old.gaussians for old in system.learned if old.gaussians} | {
        task.name: newest
    }
    align(backbone, gaussians, system.classes, settings, seed=seed + 1000 * len(gaussians))
    return newest


def _trained(plan: Plan, seen: TaskStream) -> int:
    """Return how many parameters were trained: no module's frozen half, and no head that is computed."""
    own = set(map(id, plan.method.parameters(plan.backbone)))  # heads may be among them
    names = {name for name, _ in plan.method.examples(seen.tasks)}
    heads = {
        id(p): p for name in names for p in plan.backbone.own(name).parameters() if id(p) not in own
    }
    return plan.method.trained(plan.backbone) + sum(p.numel() for p in heads.values())
