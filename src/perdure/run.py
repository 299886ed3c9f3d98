"""The whole story: for each task of a stream, learn it, merge, evaluate, save."""

import dataclasses
import importlib.metadata
import os
import platform
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from perdure import adapters, registry
from perdure.adapters import Adapter, same
from perdure.alignment import Alignment, Gaussians, align
from perdure.backbone import Backbone
from perdure.errors import InputError, RunError
from perdure.evaluate import TASK_IDS, Evaluator, TaskId, features
from perdure.learn import Training, learn
from perdure.merge import Combined, Rule, combine
from perdure.method import Method
from perdure.results import Learned, Run
from perdure.rule import nature_of
from perdure.stream import Task, TaskStream
from perdure.task_id import Statistics, TaskPosterior, describe
from perdure.task_vector import TaskVector


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What is measured while a stream is learned.

    Parameters
    ----------
    task_ids
        How the task of a test example is known: `given`, by the task `posterior`, or not at all, with all heads
        `concatenated`.
    steps
        After `all` tasks, or after the `last` only.
    future
        Also measure tasks before they are learned, which forward transfer needs.
    """

    task_ids: tuple[TaskId, ...] = TASK_IDS
    steps: Literal["all", "last"] = "all"
    future: bool = False


def run(
    stream: TaskStream,
    backbone: Backbone,
    method: Method,
    rule: Rule | str | None = None,
    *,
    output: str | Path,
    training: Training | None = None,
    evaluation: Evaluation | None = None,
    seed: int = 0,
    quiet: bool = True,
) -> Run:
    """Learn a stream of tasks by a method, combine what was learned by a rule after each task, and measure it.

    Parameters
    ----------
    rule
        By default the method's usual one.
    output
        The run folder; it must be new or empty.
    quiet
        Show no progress bars.

    Returns
    -------
    Run
        The folder, from which everything can be read.
    """
    rule = rule if isinstance(rule, Rule) else Rule(name=rule or method.usual_rule)
    training, evaluation = training or Training(), evaluation or Evaluation()
    check_alignment(training, rule)
    check_length(stream, rule)
    settings = {
        "stream": {"name": stream.name, "scenario": stream.scenario, "tasks_made_in_python": stream.names},
        **settings_of(backbone, method, rule, training=training, evaluation=evaluation, seed=seed),
    }
    results = Run.create(output, settings, environment())
    return go_on(
        results,
        stream,
        backbone,
        method,
        rule,
        training=training,
        evaluation=evaluation,
        seed=seed,
        quiet=quiet,
    )


def go_on(
    results: Run,
    stream: TaskStream,
    backbone: Backbone,
    method: Method,
    rule: Rule,
    *,
    training: Training,
    evaluation: Evaluation,
    seed: int,
    quiet: bool = True,
) -> Run:
    """Learn the tasks of a stream that the run has not learned yet, and measure what has not been measured.

    Raises
    ------
    RunError
        The stream does not begin with the tasks that the run has learned.
    """
    check_alignment(training, rule)
    learned = restore(results, backbone, stream)
    if training.alignment and any(task.gaussians is None for task in learned):
        raise InputError("`alignment` must be on from the first task on, but the run has learned tasks without it.")
    method.state = dict(learned[-1].state) if learned else {}  # it may have served another run before
    measured = {row["step"] for row in results.scores() if row["rule"] == rule.label}
    for step in range(len(learned), len(stream) + 1):
        if step > len(learned):
            seen = stream.until(step)
            learned.append(
                _learn_task(
                    results, learned, seen, backbone, method, rule=rule, training=training, seed=seed, quiet=quiet
                )
            )
            if not rule.searches:  # a search has its result only when it is measured
                results.save_combined(_described(rule))
        due = evaluation.future if step == 0 else evaluation.steps == "all" or step == len(stream)
        if due and step not in measured:
            measure(results, learned, stream, backbone, rule, evaluation=evaluation)
    return results


def check_alignment(training: Training, rule: Rule) -> None:
    """Whether heads can be aligned with a rule.

    Raises
    ------
    InputError
        The rule gives no single model, or its scale is found only afterwards.
    """
    if training.alignment and (rule.searches or rule.tried().routed):
        raise InputError(f"`alignment` needs one model with a fixed scale, but the rule is `{rule.label}`.")


def check_length(stream: TaskStream, rule: Rule) -> None:
    """Whether a rule can combine so many tasks.

    Raises
    ------
    InputError
        It cannot.
    """
    nature = nature_of(registry.find("rule", rule.name))
    if nature and nature.most and len(stream) > nature.most:
        raise InputError(f"The rule `{rule.name}` combines at most {nature.most} tasks; the stream has {len(stream)}.")


def _learn_task(
    results: Run,
    earlier: Sequence[Learned],
    seen: TaskStream,
    backbone: Backbone,
    method: Method,
    *,
    rule: Rule,
    training: Training,
    seed: int,
    quiet: bool,
) -> Learned:
    """Learn the newest task, and save all that is kept of it."""
    task, started = seen[-1], time.perf_counter()
    before = {name: backbone.head_state(name) for name in backbone.head_names}
    adapter = learn(
        backbone,
        seen.tasks,
        method,
        training,
        earlier=[old.adapter for old in earlier],
        seed=seed,
        log=results.event,
        folder=results.folder,
        quiet=quiet,
    )
    rows = backbone.encode(task.rows("train"))
    gaussians = None
    if training.alignment:
        gaussians = _align(backbone, earlier, task, adapter, rule, settings=training.alignment, seed=seed)
    after = {name: backbone.head_state(name) for name in backbone.head_names}
    learned = Learned(
        classes=task.classes,
        adapter=adapter,
        heads={name: head for name, head in after.items() if name not in before or not same(head, before[name])},
        statistics=Statistics.of(describe(backbone, rows), torch.tensor(rows.labels), len(task.classes)),
        state=dict(method.state),
        digests=task.digests(),
        gaussians=gaussians,
    )
    stock_head = (backbone.head_name, backbone.head(task.name)) if backbone.head_name else None
    results.save_task(learned, base=backbone.published, head=stock_head)
    seconds = round(time.perf_counter() - started, 3)
    about = {"seconds": seconds, "examples": len(rows), "trained": _trained(learned)}
    results.event({"event": "task", "task": task.name, **about})
    return learned


def _trained(learned: Learned) -> int:
    """How many parameters training has changed: a module's frozen half is none of them."""
    before, after = learned.adapter.start, learned.adapter.parameters
    moved = {name: value for name, value in after.items() if not torch.equal(value, before[name])}
    return sum(value.numel() for part in (moved, *learned.heads.values()) for value in part.values())


def _align(
    backbone: Backbone,
    earlier: Sequence[Learned],
    task: Task,
    adapter: Adapter,
    rule: Rule,
    *,
    settings: Alignment,
    seed: int,
) -> Gaussians:
    """Align the heads of all tasks so far; return what is to be remembered of the newest."""
    combined = combine([*(old.adapter for old in earlier), adapter], rule)
    rows = backbone.encode(task.rows("train"))
    found = features(backbone, combined, rows).cpu()
    gaussians = Gaussians.of(found, torch.tensor(rows.labels), len(task.classes))
    remembered = {old.name: old.gaussians for old in earlier if old.gaussians} | {task.name: gaussians}
    classes = {old.name: old.classes for old in earlier} | {task.name: task.classes}
    align(backbone, remembered, classes, settings, seed=seed + 1000 * len(remembered))
    return gaussians


def restore(results: Run, backbone: Backbone, stream: TaskStream | None = None) -> list[Learned]:
    """Give the backbone the heads of a run's tasks and the last task's adapter, as they were left; return the tasks.

    Raises
    ------
    RunError
        The `stream` does not begin with the tasks that the run has learned, or their examples are others now.
    """
    learned = [results.load_task(name) for name in results.tasks]
    if stream:
        _check(learned, stream)
    adapters.detach(backbone.model)  # another run may have used this backbone before
    backbone.heads.clear()
    give_heads(backbone, learned)
    if learned:
        adapters.attach(backbone.model, learned[-1].adapter.config)
        adapters.write(backbone.model, learned[-1].adapter.parameters)
    return learned


def _check(learned: Sequence[Learned], stream: TaskStream) -> None:
    names = [task.name for task in learned]
    if stream.names[: len(names)] != names:
        raise RunError(f"The run has learned the tasks {names}, but the stream has {stream.names}. Keep their order.")
    for old, task in zip(learned, stream, strict=False):
        if old.classes != task.classes or old.digests != task.digests():
            raise RunError(
                f"The examples of task `{task.name}` are not those that the run learned: the data has changed, and "
                "what is test now may have been trained on. Put the old data back, or start a new run."
            )


def give_heads(backbone: Backbone, learned: Sequence[Learned]) -> None:
    """The heads as they were after the last of these tasks; a later task may have trained an earlier one's head on."""
    for task in learned:
        for name, head in task.heads.items():
            backbone.add_head(name, len(head["bias"]))
            backbone.head(name).load_state_dict(head)


def measure(
    results: Run,
    learned: Sequence[Learned],
    stream: TaskStream,
    backbone: Backbone,
    rule: Rule,
    *,
    evaluation: Evaluation,
    own: bool = True,
) -> None:
    """Combine the tasks learned and add one row of R for each way to know the task.

    `own` says whether the rule is the run's own: the one that `predict` and `export` will take.
    """
    started = time.perf_counter()
    seen = [task.name for task in learned]
    give_heads(backbone, learned)
    if evaluation.future:
        _give_fresh_heads(backbone, stream.tasks[len(seen) :], results.recipe["seed"])
    posterior = TaskPosterior({task.name: task.statistics for task in learned}) if learned else None
    # before the first task every head is untrained, and every task as likely as the others
    evaluator = Evaluator(backbone, stream, seen or stream.names, posterior)
    found, candidates = rule, []
    if rule.searches and learned:
        found, candidates = evaluator.search_scale([task.adapter for task in learned], rule, stream.scenario)
    combined = combine([task.adapter for task in learned], found) if learned else Combined(TaskVector({}))
    row = evaluator.row(combined, stream.names if evaluation.future else seen, evaluation.task_ids)
    unknown = "class" if stream.scenario == "task" else stream.scenario
    results.add_scores(
        {
            "step": len(learned),
            "task": task,
            "scenario": "task" if task_id == "given" else unknown,
            "task_id": task_id,
            "rule": rule.label,
            "metric": "accuracy",
            "value": value,
        }
        for task_id, values in row.items()
        for task, value in values.items()
    )
    about = {"rule": rule.label, "options": dict(found.options), "candidates": candidates}
    seconds = round(time.perf_counter() - started, 3)
    results.event({"event": "evaluation", "step": len(learned), "seconds": seconds, **about})
    if learned and own:
        results.save_combined(_described(found) | {"label": rule.label, "candidates": candidates})


def _described(rule: Rule) -> dict[str, Any]:
    return {"label": rule.label, **dataclasses.asdict(rule), "candidates": []}


def _give_fresh_heads(backbone: Backbone, tasks: Sequence[Task], seed: int) -> None:
    """Untrained heads for tasks to come, the same whenever they are measured."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for task in tasks:
            backbone.add_head(task.name, len(task.classes))


# -- what was run, and on what


def settings_of(
    backbone: Backbone, method: Method, rule: Rule, *, training: Training, evaluation: Evaluation, seed: int
) -> dict[str, Any]:
    """All settings of a run but its stream, as a recipe states them."""
    options = {field.name: getattr(method, field.name) for field in dataclasses.fields(method) if field.init}
    searched = {"search": _plain(rule.search)} if rule.searches else {}
    return {
        "backbone": {
            "model": backbone.source,
            "pooling": backbone.pooling,
            "max_length": backbone.max_length,
            "image_size": backbone.image_size,
            "head": backbone.head_name,
        },
        "method": {"name": type(method).__module__.rpartition(".")[2], **options},
        "rule": {"name": rule.name, "space": rule.space, "since": rule.since, **searched, **rule.options},
        "training": _plain(training),
        "evaluation": _plain(evaluation),
        "seed": seed,
    }


def _plain(settings: Any) -> dict[str, Any]:
    """A dataclass as YAML can hold it."""
    values = dataclasses.asdict(settings)
    return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


def environment() -> dict[str, Any]:
    """Versions, source revision and hardware."""
    packages = ("perdure", "torch", "transformers", "peft", "accelerate", "datasets", "tokenizers", "numpy")
    return {
        "python": platform.python_version(),
        "versions": {name: importlib.metadata.version(name) for name in packages},
        "revision": _revision(),
        "machine": platform.machine(),
        "system": platform.system(),
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "accelerator": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def _revision() -> str | None:
    """The git revision of perdure's own source, if it is run from a checkout."""
    here = Path(__file__).parent
    command = ["git", "-C", str(here), "describe", "--always", "--dirty", "--exclude", "*"]
    try:
        tracked = subprocess.run(["git", "-C", str(here), "ls-files", "--error-unmatch", __file__], capture_output=True)
        found = subprocess.run(command, capture_output=True, text=True)
    except OSError:
        return None
    return found.stdout.strip() if tracked.returncode == 0 and found.returncode == 0 else None
