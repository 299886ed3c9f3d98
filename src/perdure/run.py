"""The whole story: for each task of a stream, learn it, merge, evaluate, save."""

import dataclasses
import importlib.metadata
import os
import platform
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from perdure import adapters
from perdure.backbone import Backbone
from perdure.evaluate import TASK_IDS, Evaluator, TaskId
from perdure.learn import Training, learn
from perdure.merge import Combined, Rule, combine
from perdure.method import Method
from perdure.results import Learned, Run
from perdure.stream import TaskStream
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
    rule: Rule | str = "task_arithmetic",
    *,
    output: str | Path,
    training: Training | None = None,
    evaluation: Evaluation | None = None,
    seed: int = 0,
    recipe: Mapping[str, Any] | None = None,
    quiet: bool = True,
) -> Run:
    """Learn a stream of tasks by a method, combine what was learned by a rule after each task, and measure it.

    Parameters
    ----------
    output
        The run folder; it must be new or empty.
    recipe
        What is written to `recipe.yaml`; by default what can be read off the other arguments.
    quiet
        Show no progress bars.

    Returns
    -------
    Run
        The folder, from which everything can be read.
    """
    rule = Rule(name=rule) if isinstance(rule, str) else rule
    training, evaluation = training or Training(), evaluation or Evaluation()
    settings = recipe or settings_of(
        stream, backbone, method, rule, training=training, evaluation=evaluation, seed=seed
    )
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
    """Learn the tasks of a stream that the run has not learned yet."""
    learned = restore(results, backbone)
    if learned:
        method.state.update(learned[-1].state)
    elif evaluation.future:
        torch.manual_seed(seed)
        for task in stream:
            backbone.add_head(task.name, len(task.classes))
        measure(results, learned, stream, backbone, rule, evaluation=evaluation)
    for step in range(len(learned) + 1, len(stream) + 1):
        learned.append(_learn_task(results, stream.until(step), backbone, method, training, seed=seed, quiet=quiet))
        if evaluation.steps == "all" or step == len(stream):
            measure(results, learned, stream, backbone, rule, evaluation=evaluation)
    return results


def _learn_task(
    results: Run,
    seen: TaskStream,
    backbone: Backbone,
    method: Method,
    training: Training,
    *,
    seed: int,
    quiet: bool,
) -> Learned:
    """Learn the newest task, and save all that is kept of it."""
    task, started = seen[-1], time.perf_counter()
    adapter = learn(
        backbone,
        seen.tasks,
        method,
        training,
        seed=seed,
        log=results.event,
        folder=results.folder,
        quiet=quiet,
    )
    rows = backbone.encode(task.rows("train"))
    statistics = Statistics.of(describe(backbone, rows), torch.tensor(rows.labels), len(task.classes))
    head = {name: value.detach().cpu().clone() for name, value in backbone.head(task.name).state_dict().items()}
    learned = Learned(task.classes, adapter, head, statistics, dict(method.state))
    stock_head = (backbone.head_name, backbone.head(task.name)) if backbone.head_name else None
    results.save_task(learned, base=backbone.published, head=stock_head)
    trained = sum(value.numel() for value in [*adapter.parameters.values(), *head.values()])
    seconds = round(time.perf_counter() - started, 3)
    results.event({"event": "task", "task": task.name, "seconds": seconds, "examples": len(rows), "trained": trained})
    return learned


def restore(results: Run, backbone: Backbone) -> list[Learned]:
    """Give the backbone the heads of a run's tasks and the last task's adapter, as they were left; return the tasks."""
    learned = [results.load_task(name) for name in results.tasks]
    for task in learned:
        backbone.add_head(task.name, len(task.classes))
        backbone.head(task.name).load_state_dict(task.head)
    if learned:
        adapters.attach(backbone.model, learned[-1].adapter.config)
        adapters.write(backbone.model, learned[-1].adapter.parameters)
    return learned


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
    posterior = TaskPosterior({task.name: task.statistics for task in learned}) if learned else None
    # before the first task every head is untrained, and every task as likely as the others
    evaluator = Evaluator(backbone, stream, seen or stream.names, posterior)
    found, candidates = rule, {}
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
    seconds = round(time.perf_counter() - started, 3)
    about = {"rule": rule.label, "options": dict(found.options), "candidates": candidates}
    results.event({"event": "evaluation", "step": len(learned), "seconds": seconds, **about})
    if learned and own:
        results.save_combined({"label": rule.label, **dataclasses.asdict(found), "candidates": candidates})


# -- what was run, and on what


def settings_of(
    stream: TaskStream,
    backbone: Backbone,
    method: Method,
    rule: Rule,
    *,
    training: Training,
    evaluation: Evaluation,
    seed: int,
) -> dict[str, Any]:
    """A resolved recipe, of objects made in Python."""
    options = {field.name: getattr(method, field.name) for field in dataclasses.fields(method) if field.init}
    return {
        "stream": {"name": stream.name, "scenario": stream.scenario, "tasks": stream.names},
        "backbone": backbone_settings(backbone),
        "method": {"name": type(method).__module__.rpartition(".")[2], **options},
        "rule": {"name": rule.name, "space": rule.space, "since": rule.since, **rule.options},
        "training": plain(training),
        "evaluation": plain(evaluation),
        "seed": seed,
    }


def backbone_settings(backbone: Backbone) -> dict[str, Any]:
    """The arguments with which the backbone can be loaded again."""
    return {
        "model": backbone.source,
        "pooling": backbone.pooling,
        "max_length": backbone.max_length,
        "head": backbone.head_name,
    }


def plain(settings: Any) -> dict[str, Any]:
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
