"""Recipes: YAML ⇄ objects, validated against the signatures of what they name."""

import copy
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

from annotated_types import Ge
from pydantic import BaseModel, ConfigDict, ValidationError

from perdure import registry
from perdure.data.table import read_tasks
from perdure.data.task import Scenario, Task, TaskStream
from perdure.errors import CheckpointError, InputError, PerdureWarning
from perdure.evaluation.measure import Evaluation
from perdure.learning import engine
from perdure.learning.method import Method
from perdure.learning.training import Training
from perdure.merging.combine import check_fits
from perdure.merging.rule_settings import Rule
from perdure.models.backbone import Backbone
from perdure.runs import story
from perdure.runs.folder import Run
from perdure.runs.job import Plan, check, check_alignment, make_method, settings_of
from perdure.runs.layout import is_run
from perdure.runs.past import UNREADABLE, Past, Unreadable, as_entry, past_of
from perdure.runs.state import RunState, read
from perdure.settings import Section, check_numbers, checked, kinds_of, named, put, sentence
from perdure.storage import files

SAME = 3
"""So many tasks with the same classes are no coincidence: two may well both answer yes or no."""


class Recipe(BaseModel):
    """One run: a stream, a backbone, a method, a rule, and how to train.

    `stream` names a benchmark (with its settings), or lists one's own data, an entry per table (`scenario` is for
    these); tasks that are `forgotten` are left out of it (and `traces` says, by the name of such a task, how many were
    learned before it, where something of it remains in the others). `backbone`, `method` and `rule` are a name, or a
    mapping of `name` (`model` for the backbone) and settings.

    Examples
    --------
    >>> rule = {"name": "task_arithmetic", "scale": 0.3}
    >>> recipe = Recipe.parse({"stream": "demo", "backbone": "minilm", "rule": rule})
    >>> recipe.make_rule().label, recipe.make_method()
    ('task_arithmetic(scale=0.3)', Isolated(peft='lora', rank=8, ...))
    """

    model_config = ConfigDict(extra="forbid")

    name: str | None = None
    about: str | None = None
    stream: Section | list[dict[str, Any]]
    scenario: Scenario | None = None
    backbone: Section
    method: Section
    rule: Section
    training: dict[str, Any] = {}
    evaluation: dict[str, Any] = {}
    seed: Annotated[int, Ge(0)] = 0
    forgotten: list[str] = []
    traces: dict[str, Annotated[int, Ge(0)]] = {}

    # -- reading

    @classmethod
    def parse(
        cls, values: Any, settings: Sequence[str] = (), where: str = "the recipe"
    ) -> "Recipe":
        """Check a mapping, after `settings` (`key.key=value`) have been put into it."""
        if not isinstance(values, dict):
            raise InputError(
                f"{where} must be a mapping of settings such as `stream` and `backbone`."
            )
        values = {"method": "isolated"} | copy.deepcopy(values)
        of_rule = [setting for setting in settings if setting.startswith("rule")]
        for setting in settings:
            if setting not in of_rule:
                put(values, setting)
        if "rule" not in values:
            values["rule"] = _usual_rule(values["method"])  # the method is known now
        for setting in of_rule:
            put(values, setting)
        try:
            recipe = cls.model_validate(values)
        except ValidationError as error:
            raise sentence(error, where, kinds_of(cls), values) from error
        for name, value in values.items():
            check_numbers(value, getattr(recipe, name), f"{where}: `{name}`")
        return recipe

    @classmethod
    def read(
        cls, path: str | Path, settings: Sequence[str] = (), *, trust: bool = False
    ) -> "Recipe":
        """Read a YAML file, or the recipe of a run.

        Python files that a recipe names may be run; those that a run folder names only with `trust`.
        """
        path = Path(path)
        if path.name == "recipe.yaml" and (path.parent / "environment.json").exists():
            path = path.parent  # that of a run: whoever made the folder wrote it
        if (path / "recipe.yaml").is_file():
            return cls.parse(read(path, trust=trust).recipe, settings, f"`{path / 'recipe.yaml'}`")
        if path.is_dir():
            raise InputError(
                f"`{path}` is a folder, but no run: it has no `recipe.yaml`. Give a recipe, or a run."
            )
        if not path.exists():
            raise InputError(f"There is no file `{path}`.")
        try:
            values = files.read_yaml(path)
        except CheckpointError as error:
            raise InputError(str(error)) from error
        registry.trust(values)
        return cls.parse(values, settings, f"`{path}`")

    # -- the objects

    def make_stream(self, run: RunState | None = None) -> TaskStream:
        """Make the tasks, but for those that were forgotten.

        Parameters
        ----------
        run
            The run that goes on with them, if there is one. Tasks that it has learned and whose examples are gone, or
            have changed, are then in the stream without them (`TaskStream.missing`).

        Raises
        ------
        InputError
            None is left.
        """
        if self.stream == [] and self.forgotten:
            raise _nothing_left(self.forgotten)
        past = past_of(run) if run else Past()
        if isinstance(self.stream, list):
            stream = own_stream(
                self.stream, scenario=self.scenario or "class", seed=self.seed, past=past
            )
        else:
            stream = _past_benchmark(self.stream, self.seed, past)
            stream = replace(stream, scenario=self.scenario) if self.scenario else stream
        tasks = tuple(task for task in stream if task.name not in self.forgotten)
        if not tasks:
            raise _nothing_left(self.forgotten)
        return replace(stream, tasks=tasks)

    def make_backbone(self) -> Backbone:
        """The pre-trained model, on the accelerator that is here, if one is."""
        name, options = named(self.backbone, "backbone", key="model")
        backbone = Backbone.load(name, **checked(Backbone.load, options, "backbone"))
        return backbone.to(engine.device())

    def make_method(self) -> Method:
        """The method, with its settings."""
        return make_method(self.method)

    def make_rule(self) -> Rule:
        """The rule, with its settings."""
        return Rule.of(self.rule)

    def make_training(self) -> Training:
        return Training(**checked(Training, self.training, "training"))

    def make_evaluation(self) -> Evaluation:
        return Evaluation(**checked(Evaluation, self.evaluation, "evaluation"))

    # -- doing

    def plan(
        self,
        stream: TaskStream | None = None,
        backbone: Backbone | None = None,
        *,
        run: RunState | None = None,
    ) -> Plan:
        """All that the run needs, checked before anything is trained; `stream` and `backbone` may be made already.

        With a `run` that goes on, tasks that it has learned may lack their examples.
        """
        method, rule = self.make_method(), self.make_rule()
        training, evaluation = self.make_training(), self.make_evaluation()
        _check_together(method, rule, training)
        check_alignment(training, rule)
        stream, backbone = stream or self.make_stream(run), backbone or self.make_backbone()
        plan = Plan(stream, backbone, method, rule, training, evaluation, self.seed)
        check(plan)
        if self.scenario is None and isinstance(self.stream, list):
            _hint_at_domains(stream, len(run.tasks) if run else 0)
        return plan

    def run(self, output: str | Path, *, change: bool = False, quiet: bool = True) -> Run:
        """Do what the recipe says, or go on with it. Everything is checked before anything is trained.

        With `change` it becomes the recipe of the run that is there, whatever differs.

        Raises
        ------
        RunError
            Another process is writing the folder, or it holds a run with other settings.
        Stopped
            The run was asked to stop.
        """
        output = Path(output)
        plan = self.plan(run=read(output) if is_run(output) else None)
        plan = replace(plan, recipe=self.resolved(plan))
        story.run(plan, output, change=change, quiet=quiet)
        return Run(output)

    def resolved(self, plan: Plan) -> dict[str, Any]:
        """The recipe with all defaults written out."""
        empty = {name for name in ("forgotten", "traces") if not getattr(self, name)}
        settings = settings_of(plan)
        settings["method"] = _with_names(settings["method"], self.method)
        return files.plain(self.model_dump(exclude_none=True, exclude=empty) | settings)


def _nothing_left(forgotten: Sequence[str]) -> InputError:
    return InputError(
        f"All tasks were forgotten: {', '.join(forgotten)}. Teach the run others, with `perdure learn`."
    )


def _usual_rule(method: Any) -> str:
    """The rule that goes with a method, where none is named."""
    while isinstance(method, dict) and isinstance(method.get("method"), (str, dict)):
        method = method["method"]  # one that wraps another has the other's
    known = isinstance(method, (str, dict))
    rule = registry.find("method", named(method, "method")[0]).usual_rule if known else None
    return rule if isinstance(rule, str) else Method.usual_rule


def _with_names(resolved: dict[str, Any], section: Section) -> dict[str, Any]:
    """A method's settings under the names that the recipe gives: a path stays a path."""
    name, options = named(section, "method")
    inner = (
        {"method": _with_names(resolved["method"], options["method"])}
        if "method" in resolved
        else {}
    )
    return {**resolved, **inner, "name": name}


def _hint_at_domains(stream: TaskStream, learned: int) -> None:
    """Say that tasks of the same classes have a scenario of their own; once, when there are enough to tell."""
    classes = {frozenset(task.classes) for task in stream}
    if len(classes) == 1 and len(stream) >= SAME > learned:
        warnings.warn(
            f"All {len(stream)} tasks have the same classes. A run that begins with `scenario: domain` takes them as "
            "such, and with `training: {heads: shared}` has one head for all, which is the usual baseline.",
            PerdureWarning,
            stacklevel=3,
        )


def _check_together(method: Method, rule: Rule, training: Training) -> None:
    """Check what the rule says of itself, so that it fails now and not after hours of training."""
    for name in rule.nature.needs:
        if name not in training.kept:
            raise InputError(f"The rule `{rule.name}` needs `training: {{keep_{name}: true}}`.")
    if training.keep_inputs and method.module != "lora":
        raise InputError(
            "`keep_inputs` is of the layers with LoRA: it needs a method with `peft: lora`."
        )
    check_fits(rule, method.module)


def own_stream(
    entries: Sequence[Mapping[str, Any]],
    *,
    scenario: Scenario = "class",
    seed: int = 0,
    past: Past | None = None,
) -> TaskStream:
    """A stream of one's own data: the tasks of each entry, in order, `without` those that it names there.

    An entry can also name a `benchmark`. With a `past`, an entry that was learned need not be readable.
    """
    past = past or Past()
    parts: list[list[Task] | Unreadable] = []
    for entry in entries:
        try:
            tasks = past.compared(entry, _tasks_of(entry, seed))
        except UNREADABLE as error:
            tasks = past.instead_of(entry, error)
        parts.append(tasks)
    return TaskStream("own", tuple(past.completed(parts)), scenario)


def _tasks_of(entry: Mapping[str, Any], seed: int) -> list[Task]:
    """Read the tasks of one entry."""
    options = dict(entry)
    _check_sources(options.get("data"))
    left_out = options.pop("without", [])
    if not isinstance(left_out, list):
        raise InputError(
            f"`stream`: `without` is {left_out!r}, but should be a list of names of tasks."
        )
    if "benchmark" in options:
        tasks = _benchmark(options.pop("benchmark"), options, seed).tasks
    elif isinstance(options.get("data"), (str, dict)):
        source = options.pop("data")
        tasks = read_tasks(source, **checked(read_tasks, {"seed": seed} | options, "stream"))
    else:
        raise InputError(
            f"`stream`: the entry {options} has no `data` (a file, a folder, or a hub id)."
        )
    return [task for task in tasks if task.name not in left_out]


def _past_benchmark(section: Section, seed: int, past: Past) -> TaskStream:
    """Make a benchmark's stream; of one that cannot be had now, the tasks that were learned."""
    name, options = named(section, "stream")
    entry = as_entry(section)
    try:
        stream = _benchmark(name, options, seed)
    except UNREADABLE as error:
        tasks = past.completed([past.instead_of(entry, error)])
        return TaskStream(name, tuple(tasks), _scenario(name, options))
    return replace(stream, tasks=tuple(past.compared(entry, stream.tasks)))


def _scenario(name: str, options: Mapping[str, Any]) -> Scenario:
    """Return the scenario of a benchmark as its settings say it, without making it."""
    parameter = registry.options(registry.find("benchmark", name)).get("scenario")
    usual = parameter.default if parameter else "class"
    return options.get("scenario", usual)


def _check_sources(data: Any) -> None:
    """Check that the names of files are some: an empty one would be the folder that the process is in."""
    for source in data.values() if isinstance(data, Mapping) else [data]:
        if isinstance(source, str) and (not source.strip() or "\0" in source):
            raise InputError(
                f"`stream`: `data` is {source!r}, but must be a file, a folder, or a hub id."
            )


def _benchmark(name: str, options: dict[str, Any], seed: int) -> TaskStream:
    """A benchmark's stream; the run's seed is also that of its choices, if it makes any and states none of its own."""
    if "tasks_made_in_python" in options:
        raise InputError(
            f"The stream `{name}` was made in Python, not by a recipe: give it as `stream=…`."
        )
    function = registry.find("benchmark", name)
    if "seed" in registry.options(function):
        options = {"seed": seed} | options
    return function(**checked(function, options, f"stream `{name}`"))
