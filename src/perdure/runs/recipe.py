"""Recipes: read from YAML, validated against the signatures of the objects that they name."""

import copy
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated

from annotated_types import Ge, Gt
from pydantic import BaseModel, ConfigDict, ValidationError

from perdure import registry
from perdure.data.graduated import graduated
from perdure.data.table import read_tasks
from perdure.data.task import Scenario, Task, TaskStream
from perdure.errors import CheckpointError, InputError, PerdureWarning
from perdure.evaluation import general
from perdure.evaluation.measure import Evaluation
from perdure.learning import engine
from perdure.learning.method import Method
from perdure.learning.training import Training
from perdure.merging.combine import check_fits
from perdure.merging.rule_settings import Rule
from perdure.models.backbone import Backbone
from perdure.runs import old_names, story
from perdure.runs.folder import Run
from perdure.runs.job import Plan, check, check_alignment, make_method, settings_of
from perdure.runs.layout import is_run
from perdure.runs.past import UNREADABLE, Past, Unreadable, as_entry, past_of
from perdure.runs.state import RunState, read
from perdure.settings import Section, check_numbers, checked, kinds_of, named, put, sentence
from perdure.storage import files

SAME = 3
"""The number of tasks at which identical classes no longer count as a coincidence.

With fewer tasks, the classes may be the same by chance, such as yes and no.
"""


class Recipe(BaseModel):
    """The recipe of a run: a stream, a backbone, a method, a rule, and settings.

    `stream` names a benchmark (with its settings), or lists the user's own data, one entry per
    table. `scenario` is the scenario of such a list; for a benchmark, it replaces the benchmark's
    own. With `graduated`, the tasks fade into each other (`perdure.data.graduated`); for a
    benchmark, it can also be given in `stream`. `backbone`, `method` and `rule` are each a name, or
    a mapping of `name` (`model` for the backbone) and settings. Tasks in `forgotten` are left out
    of the stream. If later tasks still contain traces of a forgotten task, `traces` maps its name
    to the number of tasks that were learned before it.

    Examples
    --------
    >>> rule = {"name": "task_arithmetic", "scale": 0.3}
    >>> recipe = Recipe.parse({"stream": "demo", "backbone": "minilm", "rule": rule})
    >>> recipe.make_rule().label, recipe.make_method()
    ('task_arithmetic(scale=0.3)', Isolated(peft='lora', rank=8, ...))
    """

    # a misspelled section is an error, and is not ignored
    model_config = ConfigDict(extra="forbid")

    name: str | None = None
    about: str | None = None
    stream: Section | list[dict[str, object]]
    scenario: Scenario | None = None
    graduated: Annotated[float, Gt(0)] | None = None
    backbone: Section
    method: Section
    rule: Section
    training: dict[str, object] = {}
    evaluation: dict[str, object] = {}
    seed: Annotated[int, Ge(0)] = 0
    forgotten: list[str] = []
    traces: dict[str, Annotated[int, Ge(0)]] = {}

    # -- reading

    @classmethod
    def parse(
        cls, values: object, settings: Sequence[str] = (), where: str = "the recipe"
    ) -> "Recipe":
        """Create a recipe from a mapping, with `settings` (`key.key=value`) applied to it."""
        if not isinstance(values, dict):
            raise InputError(
                f"{where} must be a mapping of settings such as `stream` and `backbone`."
            )
        # a copy, because `put` changes nested mappings, which belong to the caller
        values = {"method": "isolated"} | old_names.recipe(copy.deepcopy(values))
        stream = values.get("stream")
        if isinstance(stream, dict) and "graduated" in stream:
            values["graduated"] = stream.pop("graduated")
        # Settings of the rule are applied last, because the usual rule depends on the method, which
        # the other settings may change.
        for setting in settings:
            if not setting.startswith("rule"):
                put(values, setting)
        if "rule" not in values:
            values["rule"] = _usual_rule(values["method"])
        for setting in settings:
            if setting.startswith("rule"):
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
        """Read a recipe from a YAML file or from a run folder.

        Python files that a recipe file names may be run; those that a run folder names require
        `trust`.
        """
        path = Path(path)
        # The `recipe.yaml` of a run folder requires trust even if it is named directly: whoever
        # made the folder wrote it, and the user may never have read it.
        if path.name == "recipe.yaml" and (path.parent / "environment.json").exists():
            path = path.parent
        if (path / "recipe.yaml").is_file():
            return cls.parse(read(path, trust=trust).recipe, settings, f"`{path / 'recipe.yaml'}`")
        if path.is_dir():
            raise InputError(
                f"`{path}` is a folder but not a run: it has no `recipe.yaml`. "
                "Give a recipe or a run folder."
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
        """Create the stream of tasks, without those that were forgotten.

        Parameters
        ----------
        run
            The run that continues with these tasks, if any. If the examples of a task that it has
            learned are gone or have changed, the stream contains the task without its examples
            (`TaskStream.missing`).

        Raises
        ------
        InputError
            No task is left.
        """
        # without entries, `TaskStream` would complain that it has no tasks, without saying why
        if self.stream == [] and self.forgotten:
            raise _nothing_left(self.forgotten)
        # The segments of a graduated stream consist of the examples of all tasks, so no task can
        # be replaced with what the run has learned from it.
        past = past_of(run) if run and not self.graduated else Past()
        if isinstance(self.stream, list):
            scenario = self.scenario or "class"
            stream = own_stream(
                self.stream,
                scenario=scenario,
                seed=self.seed,
                past=past,
            )
        else:
            stream = _past_benchmark(self.stream, self.seed, past)
            if self.scenario:
                stream = replace(stream, scenario=self.scenario)
        tasks = tuple(task for task in stream if task.name not in self.forgotten)
        if not tasks:
            raise _nothing_left(self.forgotten)
        stream = replace(stream, tasks=tasks)
        if self.graduated is None:
            return stream
        if self.scenario not in (None, "domain"):
            raise InputError(
                "The tasks of a graduated stream share all classes, which is `scenario: domain`; "
                f"the recipe has `scenario: {self.scenario}`."
            )
        return graduated(stream, self.graduated, seed=self.seed)

    def make_backbone(self) -> Backbone:
        """Load the pre-trained model, on the accelerator if this machine has one."""
        name, options = named(self.backbone, "backbone", key="model")
        settings = checked(Backbone.load, options, "backbone")
        backbone = Backbone.load(name, **settings)
        return backbone.to(engine.device())

    def make_method(self) -> Method:
        """Create the method, with its settings."""
        return make_method(self.method)

    def make_rule(self) -> Rule:
        """Create the rule, with its settings."""
        return Rule.of(self.rule)

    def make_training(self) -> Training:
        """Create the settings for training."""
        return Training(**checked(Training, self.training, "training"))

    def make_evaluation(self) -> Evaluation:
        """Create the settings for evaluation."""
        return Evaluation(**checked(Evaluation, self.evaluation, "evaluation"))

    # -- doing

    def plan(
        self,
        stream: TaskStream | None = None,
        backbone: Backbone | None = None,
        *,
        run: RunState | None = None,
    ) -> Plan:
        """Create everything that the run needs, and check it before anything is trained.

        Parameters
        ----------
        stream, backbone
            The recipe's stream and backbone, if the caller has already created them.
        run
            The run to continue; tasks that it has learned may lack their examples.
        """
        method = self.make_method()
        rule = self.make_rule()
        training = self.make_training()
        evaluation = self.make_evaluation()
        # these take no time; the data and the model below may take minutes
        _check_together(method, rule, training)
        check_alignment(training, rule)
        stream = stream or self.make_stream(run)
        backbone = backbone or self.make_backbone()
        plan = Plan(
            stream,
            backbone,
            method,
            rule,
            training,
            evaluation,
            seed=self.seed,
            never=never_trained(evaluation, self.seed),
        )
        check(plan)
        if self.scenario is None and isinstance(self.stream, list) and not self.graduated:
            _hint_at_domains(stream, len(run.tasks) if run else 0)
        return plan

    def run(self, output: str | Path, *, change: bool = False, quiet: bool = True) -> Run:
        """Run the recipe in the folder `output`, or continue the run that is there.

        Everything is checked before anything is trained.

        Parameters
        ----------
        change
            Make this the recipe of an existing run, even if its settings differ.

        Raises
        ------
        RunError
            Another process is writing to the folder, or it contains a run with other settings.
        Stopped
            The run was asked to stop.
        """
        output = Path(output)
        existing = read(output) if is_run(output) else None
        plan = self.plan(run=existing)
        # the folder records the defaults, too, because a later version may have others
        plan = replace(plan, recipe=self.resolved(plan))
        story.run(plan, output, change=change, quiet=quiet)
        return Run(output)

    def resolved(self, plan: Plan) -> dict[str, object]:
        """Return the recipe with all defaults filled in."""
        # a run that has not forgotten anything has no lists of forgotten tasks and traces
        empty = {name for name in ("forgotten", "traces") if not getattr(self, name)}
        values = self.model_dump(exclude_none=True, exclude=empty)
        settings = settings_of(plan)
        settings["method"] = _with_names(settings["method"], self.method)
        return files.plain(values | settings)


def _nothing_left(forgotten: Sequence[str]) -> InputError:
    return InputError(
        f"All tasks were forgotten: {', '.join(forgotten)}. "
        "Teach the run new tasks with `perdure learn`."
    )


def _usual_rule(method: object) -> str:
    """Return the usual rule of a method, for a recipe that does not name a rule."""
    # a method that wraps another has the usual rule of the inner method
    while isinstance(method, dict) and isinstance(method.get("method"), (str, dict)):
        method = method["method"]
    if not isinstance(method, (str, dict)):  # rejected later, when the recipe is validated
        return Method.usual_rule
    name, _ = named(method, "method")
    method_class = registry.find("method", name)
    rule = method_class.usual_rule
    # the usual rule of a wrapper is a descriptor, which looks it up in the inner method
    return rule if isinstance(rule, str) else Method.usual_rule


def _with_names(resolved: dict[str, object], section: Section) -> dict[str, object]:
    """Return a method's settings, with methods named as in the recipe, to preserve file paths."""
    name, options = named(section, "method")
    renamed = dict(resolved)
    inner = resolved.get("method")
    if isinstance(inner, dict):
        renamed["method"] = _with_names(inner, options["method"])
    renamed["name"] = name
    return renamed


def _hint_at_domains(stream: TaskStream, learned: int) -> None:
    """Warn that there is a special scenario for tasks that all have the same classes.

    The warning is given once, by the call that brings the number of tasks to `SAME`.
    """
    classes = {frozenset(task.classes) for task in stream}
    # Tasks that are answered with free text have no classes to share.
    if len(stream.classes) and len(classes) == 1 and len(stream) >= SAME > learned:
        warnings.warn(
            f"All {len(stream)} tasks have the same classes. `scenario: domain` is for such tasks: "
            "with `training: {heads: shared}`, a new run has one head for all of them, which is "
            "the usual baseline.",
            PerdureWarning,
            stacklevel=3,
        )


def _check_together(method: Method, rule: Rule, training: Training) -> None:
    """Check that the method and the training settings provide what the rule needs."""
    for name in rule.nature.needs:
        if name not in training.kept:
            raise InputError(f"The rule `{rule.name}` needs `training: {{keep_{name}: true}}`.")
    if training.keep_inputs and method.module != "lora":
        raise InputError(
            "`keep_inputs` is for layers with LoRA: it needs a method with `peft: lora`."
        )
    check_fits(rule, method.module)


def own_stream(
    entries: Sequence[Mapping[str, object]],
    *,
    scenario: Scenario = "class",
    seed: int = 0,
    past: Past | None = None,
) -> TaskStream:
    """Return a stream of the user's own data, with the tasks of each entry, in order.

    An entry can also name a `benchmark`, and list tasks to leave out (`without`).

    Parameters
    ----------
    past
        The tasks that the run has already learned; entries with these tasks need not be readable.
    """
    past = past or Past()
    tasks_by_entry: list[list[Task] | Unreadable] = []
    for entry in entries:
        try:
            tasks = past.compared(entry, _tasks_of(entry, seed))
        except UNREADABLE as error:
            tasks = past.instead_of(entry, error)
        tasks_by_entry.append(tasks)
    return TaskStream("own", tuple(past.completed(tasks_by_entry)), scenario)


def never_trained(evaluation: Evaluation, seed: int) -> tuple[Task, ...]:
    """Return the tasks that `evaluation.general` names, which are measured but never trained on.

    Raises
    ------
    InputError
        An entry is not valid, or two tasks have the same name.
    """
    asked = general.source(evaluation.general)
    if asked is None or not asked.tasks:
        return ()
    return own_stream(asked.tasks, seed=seed).tasks


def _tasks_of(entry: Mapping[str, object], seed: int) -> list[Task]:
    """Read the tasks of one entry in a stream."""
    options = dict(entry)
    _check_sources(options.get("data"))
    left_out = options.pop("without", [])
    if not isinstance(left_out, list):
        raise InputError(
            f"`stream`: `without` is {left_out!r}, but should be a list of task names."
        )
    source = options.get("data")
    if "benchmark" in options:
        name, settings = named(options, "stream", key="benchmark")
        tasks = _benchmark(name, settings, seed).tasks
    elif isinstance(source, (str, dict)):
        del options["data"]
        # the data is split with the run's seed, unless the entry has a seed
        settings = checked(read_tasks, {"seed": seed} | options, "stream")
        tasks = read_tasks(source, **settings)
    else:
        raise InputError(
            f"`stream`: the entry {options} has no `data` (a file, a folder, or a hub id)."
        )
    return [task for task in tasks if task.name not in left_out]


def _past_benchmark(section: Section, seed: int, past: Past) -> TaskStream:
    """Create a benchmark's stream; if it cannot be read, use the tasks learned so far."""
    name, options = named(section, "stream")
    entry = as_entry(section)
    try:
        stream = _benchmark(name, options, seed)
    except UNREADABLE as error:
        unreadable = past.instead_of(entry, error)
        tasks = past.completed([unreadable])
        return TaskStream(name, tuple(tasks), _scenario(section))
    tasks = past.compared(entry, stream.tasks)
    return replace(stream, tasks=tuple(tasks))


def _scenario(section: Section) -> Scenario:
    """Return the scenario of a benchmark without creating its stream."""
    name, options = named(section, "stream")
    parameter = registry.options(registry.find("benchmark", name)).get("scenario")
    usual = parameter.default if parameter else "class"
    return options.get("scenario", usual)


def _check_sources(data: object) -> None:
    """Check the file names in `data`; an empty one would mean the current folder."""
    # `data` is one source, or one for each split
    for source in data.values() if isinstance(data, Mapping) else [data]:
        # the system truncates a path at a null byte
        if isinstance(source, str) and (not source.strip() or "\0" in source):
            raise InputError(
                f"`stream`: `data` is {source!r}, but must be a file, a folder, or a hub id."
            )


def _benchmark(name: str, options: Mapping[str, object], seed: int) -> TaskStream:
    """Create a benchmark's stream. If the benchmark has a `seed`, it defaults to the run's seed."""
    if "tasks_made_in_python" in options:
        raise InputError(
            f"The stream `{name}` was made in Python, not by a recipe: give it as `stream=…`."
        )
    function = registry.find("benchmark", name)
    if "seed" in registry.options(function):
        options = {"seed": seed} | dict(options)
    return function(**checked(function, options, f"stream `{name}`"))
