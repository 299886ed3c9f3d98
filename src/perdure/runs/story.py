"""The whole story: for each task of a stream, learn it, merge, evaluate, save; and go on where it was stopped."""

import contextlib
import dataclasses
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from perdure.data.task import Split, Task, TaskStream, check_images
from perdure.errors import InputError, PerdureWarning
from perdure.evaluation.posterior import describe
from perdure.evaluation.progress_bar import Progress
from perdure.evaluation.score import features
from perdure.learning import engine
from perdure.learning.alignment import Gaussians, align
from perdure.learning.loop import learn
from perdure.learning.method import Method
from perdure.learning.snapshot import Snapshot
from perdure.learning.stopping import Stopping, stopping
from perdure.learning.training import Training
from perdure.merging.combine import combine
from perdure.merging.rule_settings import Rule, RuleLike
from perdure.models.adapters import Adapter, same
from perdure.models.backbone import Backbone
from perdure.runs import layout, task_folder
from perdure.runs.changes import HARMLESS_IN_TRAINING, check_changes
from perdure.runs.environment import environment
from perdure.runs.folder import Run
from perdure.runs.job import Plan, check, check_examples, method_name
from perdure.runs.measure import Evaluation, described, measurable, measure
from perdure.runs.past import not_measured
from perdure.runs.resume import give_heads, keep_model, restore
from perdure.runs.task_folder import Learned
from perdure.storage import files
from perdure.vectors.statistics import Statistics


def run(
    stream: TaskStream,
    backbone: Backbone,
    method: Method,
    rule: RuleLike | None = None,
    *,
    output: str | Path,
    training: Training | None = None,
    evaluation: Evaluation | None = None,
    seed: int = 0,
    quiet: bool = True,
) -> Run:
    """Learn a stream of tasks by a method, combine what was learned by a rule after each task, and measure it.

    A run that was stopped, or killed, goes on when it is called again with the same settings and `output`, and comes to
    the same result, bit for bit (in the same environment). Ctrl-C, SIGTERM, SIGUSR1 and SIGHUP finish the step
    and save.

    Parameters
    ----------
    stream
        The tasks. Those that the run in `output` has learned may be there without their examples (`past_tasks`).
    rule
        A `Rule`, its name, or a mapping of `name` and settings; by default the method's usual one.
    output
        The run folder: new, empty, or that of this run.
    quiet
        Do not tell how far it is.

    Returns
    -------
    Run
        The folder, from which everything can be read.

    Raises
    ------
    RunError
        Another process is writing the folder, or it belongs to a run with other settings.
    Stopped
        The run was asked to stop.
    """
    rule = Rule.of(getattr(method, "usual_rule", "last") if rule is None else rule)
    plan = Plan(stream, backbone, method, rule, training or Training(), evaluation or Evaluation(), seed)
    check(plan)
    settings = {
        "stream": {"name": stream.name, "scenario": stream.scenario, "tasks_made_in_python": stream.names},
        **settings_of(plan),
    }
    settings = files.plain(settings)
    return go_on(begin(output, settings, plan.stream), plan, settings, quiet=quiet)


def begin(output: str | Path, settings: dict[str, Any], stream: TaskStream, *, change: bool = False) -> Run:
    """Make the folder of a run, or take the one that is there, if the settings are its own (or they may `change` it).

    Raises
    ------
    InputError
        The name of a task is too long for the file system.
    RunError
        It is that of a run with other settings, such as touch what was learned.
    """
    output = Path(output)
    task_folder.check_names(output, stream.names)
    if engine.first() and not layout.is_run(output):
        Run.create(output, settings, environment())
    engine.wait()
    results = Run(output)
    before = results.recipe
    if made_in_python(settings):  # such a stream says itself which tasks it has
        gone = [name for name in layout.forgotten(before) if name not in settings["stream"]["tasks_made_in_python"]]
        settings |= {"forgotten": gone} if gone else {}
        settings |= {"traces": before["traces"]} if before.get("traces") else {}
    if not change:
        check_changes(output, before, settings)
    return results


def go_on(results: Run, plan: Plan, settings: Mapping[str, Any] | None = None, *, quiet: bool = True) -> Run:
    """Learn the tasks of a stream that the run has not learned yet, and measure what has not been measured.

    With several processes all of them learn, and the first alone measures and writes.

    Parameters
    ----------
    settings
        The run's recipe from now on; by default as it is.

    Raises
    ------
    RunError
        The stream does not begin with the tasks that the run has learned, or another process is writing the run.
    Stopped
        The run was asked to stop.
    """
    check(plan)
    with contextlib.ExitStack() as stack:
        if engine.first():
            stack.enter_context(results.writing())
        engine.wait()
        again = "Call it again with the same `output`." if made_in_python(results.recipe) else ""
        stop = stack.enter_context(stopping(again or f"Go on with `perdure run {results.folder}`."))
        learned = restore(results, plan.backbone, plan.stream)
        if plan.training.alignment and any(task.gaussians is None for task in learned):
            raise InputError("`alignment` must be on from the first task on, but the run has learned tasks without it.")
        plan.method.state = dict(learned[-1].state) if learned else {}  # it may have served another run before
        resume = _unfinished(results, plan, len(learned))
        due = _due(results, plan)
        check_examples(plan, len(learned), due)
        check_images(plan.stream.tasks[len(learned) :])
        _check_texts(plan, len(learned), ["train", "validation", *(["test"] if due else [])])
        engine.wait()  # before the first process writes
        _settle(results, resume)
        if engine.first():
            keep_model(results, plan.backbone)
        if settings and engine.first() and results.recipe != settings:
            results.recipe = settings  # not before all of it was found to go with what was learned
        if plan.stream.missing and due and engine.first():
            warnings.warn(not_measured(plan.stream.missing), PerdureWarning, stacklevel=2)
        quiet = quiet or not engine.first()
        whole = Progress("The run", len(plan.stream), done=len(learned), quiet=quiet, bar=False)
        for step in range(len(plan.stream) + 1):
            if step > len(learned):
                give_heads(plan.backbone, learned, shared=plan.training.shares_head)
                learned.append(_learn_task(results, learned, plan, resume=resume, quiet=quiet, stop=stop))
                resume = None
            if step in due and engine.first():
                parts = (results, learned[:step], plan.stream, plan.backbone, plan.rule)
                measure(*parts, evaluation=plan.evaluation, quiet=quiet)
            whole.to(step, f"{step} of {len(plan.stream)} tasks", reached=step > whole.first)
    return results


def made_in_python(recipe: Mapping[str, Any]) -> bool:
    """Whether a run's stream was made in Python, so that its recipe cannot make it again."""
    return isinstance(recipe["stream"], Mapping) and "tasks_made_in_python" in recipe["stream"]


def _measured(results: Run, plan: Plan) -> set[int]:
    """The steps whose values are there: of each task that is due then, for each way to know the task."""
    rows = [row for row in results.scores() if row["rule"] == plan.rule.label]
    found = {(row["step"], row["task"], row["task_id"]) for row in rows}
    names, ways = plan.stream.names, plan.evaluation.task_ids

    def there(step: int) -> bool:
        due = measurable(plan.stream, step, plan.evaluation)
        return all((step, name, way) in found for name in due for way in ways)

    steps = {step for step in range(len(names) + 1) if there(step)}
    last = len(results.tasks)
    # the rule was another one meanwhile: how the tasks are combined has to be found again
    again = last in steps and last and results.combined()["label"] != plan.rule.label
    return steps - {last} if again else steps


def _due(results: Run, plan: Plan) -> list[int]:
    """Return the steps that are to be measured, and are not yet."""
    tasks = len(plan.stream)
    steps = [step for step in range(1, tasks + 1) if plan.evaluation.due(step, tasks)]
    if plan.evaluation.future:
        steps.insert(0, 0)
    measured = _measured(results, plan)
    return [step for step in steps if step not in measured]


def has_more(results: Run, plan: Plan) -> bool:
    """Return whether a run has tasks to learn, or something to measure, before it is what the plan says."""
    return results.tasks != plan.stream.names or bool(_due(results, plan))


def _unfinished(results: Run, plan: Plan, learned: int) -> Snapshot | None:
    """The state inside the next task, if it was begun with the same settings and examples."""
    snapshot = results.load_unfinished()
    if snapshot is None or learned == len(plan.stream):
        return None
    belongs_to = snapshot.about.get("belongs_to")
    if belongs_to == _belongs_to(plan, plan.stream.until(learned + 1)):
        return snapshot
    if learned and belongs_to == _belongs_to(plan, plan.stream.until(learned)):
        return None  # the process ended when it had saved the task, and before it had removed what was inside it
    message = "A task was being learned with other settings or examples when the run was stopped: it is begun again."
    warnings.warn(message, PerdureWarning, stacklevel=3)
    return None


def _belongs_to(plan: Plan, seen: TaskStream) -> dict[str, Any]:
    """What has to be the same for the training of a task to go on inside it."""
    settings = settings_of(plan)
    training = {key: value for key, value in settings["training"].items() if key not in HARMLESS_IN_TRAINING}
    same = {"method": settings["method"], "backbone": settings["backbone"], "seed": plan.seed, "training": training}
    return files.plain({"tasks": {task.name: task.digests() for task in seen}, **same})


def _settle(results: Run, resume: Snapshot | None) -> None:
    """Take back what a process that was stopped or killed wrote beyond what it saved; note where the run goes on."""
    if engine.first():
        now = files.plain(environment())
        places = [
            layout.environment(results.folder),
            *(e for e in results.events() if e.get("event") == "environment"),
        ]
        if now != {key: value for key, value in places[-1].items() if key not in ("format", "event")}:
            results.event({"event": "environment", **now})
        task = list(resume.about["belongs_to"]["tasks"])[-1] if resume else None
        results.trim_events(task, resume.about["step"] if resume else 0)
        if resume is None:
            results.drop_unfinished()


def _check_texts(plan: Plan, learned: int, splits: Sequence[Split]) -> None:
    """Tokenize the texts of the tasks to come, so that one that cannot be read is named before anything is trained.

    It costs nothing: the tokens are kept for the training.

    Raises
    ------
    DataError
        The tokenizer makes no token of a text.
    InputError
        The tokenizer reads no pairs, and a task has them.
    """
    if plan.backbone.kind != "text":
        return
    for task in plan.stream.tasks[learned:]:
        for split in splits:
            plan.backbone.encode(task.rows(split))


def _learn_task(
    results: Run,
    earlier: Sequence[Learned],
    plan: Plan,
    *,
    resume: Snapshot | None,
    quiet: bool,
    stop: Stopping,
) -> Learned:
    """Learn the next task, and save all that is kept of it."""
    backbone, method, seen = plan.backbone, plan.method, plan.stream.until(len(earlier) + 1)
    task, started = seen[-1], time.perf_counter() - (resume.about["seconds"] if resume else 0.0)
    before = {name: backbone.own_state(name) for name in backbone.heads}
    belongs_to, first = _belongs_to(plan, seen), engine.first()

    def keep(snapshot: Snapshot) -> None:
        about = {"belongs_to": belongs_to, "seconds": time.perf_counter() - started}
        results.save_unfinished(replace(snapshot, about=snapshot.about | about))

    adapter = learn(
        backbone,
        seen.tasks,
        method,
        plan.training,
        earlier=[old.adapter for old in earlier],
        seed=plan.seed,
        log=results.event if first else None,
        folder=results.folder,
        quiet=quiet,
        resume=resume,
        keep=keep if first else None,
        stop=stop,
    )
    rows = backbone.encode(task.rows("train"))
    gaussians = None
    if plan.training.alignment:
        gaussians = _align(backbone, earlier, task, adapter, plan)
    after = {name: backbone.own_state(name) for name in backbone.heads}
    owners = [task.name] if plan.training.shares_head else seen.names
    learned = Learned(
        classes=task.classes,
        adapter=adapter,
        heads={name: after[name] for name in owners if name not in before or not same(after[name], before[name])},
        statistics=Statistics.of(describe(backbone, rows), torch.tensor(task.groups("train")), len(task.classes)),
        state=dict(method.state),
        digests=task.digests(),
        gaussians=gaussians,
    )
    if first:
        about = {
            "seconds": round(time.perf_counter() - started, 3),
            "examples": len(rows),
            "trained": _trained(plan, seen),
            "store_bytes": method.store_bytes,
            "state_bytes": sum(value.nbytes for value in learned.state.values() if isinstance(value, torch.Tensor)),
        }
        with stop.later():
            _save(results, learned, plan, about)
    return learned


def _save(results: Run, learned: Learned, plan: Plan, about: Mapping[str, Any]) -> None:
    """All that is kept of a task, and `about` it what it took."""
    results.event({"event": "task", "task": learned.name, **about})  # it counts only with the task's folder
    backbone = plan.backbone
    if not plan.rule.searches:  # a search has its result only when it is measured
        results.save_combined(described(plan.rule))
    results.save_task(learned, base=backbone.published, head=backbone.stock_head(learned.name))


def _trained(plan: Plan, seen: TaskStream) -> int:
    """How many parameters were trained: a module's frozen half is none of them, nor a head that is computed."""
    own = set(map(id, plan.method.parameters(plan.backbone)))  # heads may be among them
    names = {name for name, _ in plan.method.examples(seen.tasks)}
    heads = {id(p): p for name in names for p in plan.backbone.own(name).parameters() if id(p) not in own}
    return plan.method.trained(plan.backbone) + sum(p.numel() for p in heads.values())


def _align(backbone: Backbone, earlier: Sequence[Learned], task: Task, adapter: Adapter, plan: Plan) -> Gaussians:
    """Align the heads of all tasks so far; return what is to be remembered of the newest."""
    settings = plan.training.alignment
    assert settings
    combined = combine([*(old.adapter for old in earlier), adapter], plan.rule)
    rows = backbone.encode(task.rows("train"))
    found = features(backbone, combined, rows).cpu()
    gaussians = Gaussians.of(found, torch.tensor(rows.labels), len(task.classes))
    remembered = {old.name: old.gaussians for old in earlier if old.gaussians} | {task.name: gaussians}
    classes = {old.name: old.classes for old in earlier} | {task.name: task.classes}
    align(backbone, remembered, classes, settings, seed=plan.seed + 1000 * len(remembered))
    return gaussians


# -- what was run, and on what


def settings_of(plan: Plan) -> dict[str, Any]:
    """All settings of a run but its stream, as a recipe states them."""
    backbone, method, rule = plan.backbone, plan.method, plan.rule
    searched = {"search": _plain(rule.search)} if rule.searches else {}
    training = _plain(plan.training)
    if not plan.training.shares_head:
        del training["heads"]  # folders from before there was a choice lack it, and are the same
    return {
        "backbone": backbone.settings,
        "method": _of_method(method),
        "rule": {"name": rule.name, "space": rule.space, "since": rule.since, **searched, **rule.options},
        "training": training,
        "evaluation": _plain(plan.evaluation),
        "seed": plan.seed,
    }


def _of_method(method: Method) -> dict[str, Any]:
    """A method's name and settings; those of one that it wraps inside."""
    options = {field.name: getattr(method, field.name) for field in dataclasses.fields(method) if field.init}
    options = {name: _of_method(value) if isinstance(value, Method) else value for name, value in options.items()}
    return {"name": method_name(method), **options}


def _plain(settings: Any) -> dict[str, Any]:
    """A dataclass as YAML can hold it."""
    values = dataclasses.asdict(settings)
    return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}
