"""Recipes: read from YAML, validated against the signatures of the objects that they name."""

import copy
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated

from annotated_types import Ge, Gt
from pydantic import BaseModel, ConfigDict, ValidationError

from perdure import registry
from perdure.data import network
from perdure.data.graduated import graduated
from perdure.data.task import Scenario, TaskStream
from perdure.errors import CheckpointError, InputError, PerdureWarning
from perdure.evaluation.measure import Evaluation
from perdure.evaluation.posterior import PosteriorSettings
from perdure.learning import engine
from perdure.learning.method import Method
from perdure.learning.training import Training
from perdure.merging.combine import check_fits
from perdure.merging.rule_settings import Rule
from perdure.models.backbone import Backbone
from perdure.runs import backbones, counting, old_names, story
from perdure.runs.dry_run import DryRun
from perdure.runs.folder import Run
from perdure.runs.job import Plan, check, check_alignment, make_method, settings_of
from perdure.runs.layout import is_run
from perdure.runs.past import Past, past_of
from perdure.runs.state import RunState, read
from perdure.runs.streams import never_trained, own_stream, past_benchmark, with_unknown
from perdure.settings import Section, check_numbers, checked, kinds_of, named, put, sentence
from perdure.storage import files

SAME = 3
"""The number of tasks at which identical classes no longer count as a coincidence.

With fewer tasks, the classes may be the same by chance, such as yes and no.
"""


class Recipe(BaseModel):
    """The recipe of a run: a stream, a backbone, a method, a rule, and settings.

    `stream` names a benchmark (with its settings), or lists the user's own data, one
    entry per table. `scenario` is the scenario of such a list; for a benchmark, it
    replaces the benchmark's own. With `graduated`, the tasks fade into each other
    (`perdure.data.graduated`); for a benchmark, it can also be given in `stream`.
    `backbone`, `method` and `rule` are each a name, or a mapping of `name` (`model` for
    the backbone, or `network` for one that is trained from scratch) and settings. Tasks in
    `forgotten` are left out of the stream. If later tasks still contain traces of a
    forgotten task, `traces` maps its name to the number of tasks that were learned before
    it.

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
    posterior: dict[str, object] = {}
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
        # Settings of the rule are applied last, because the usual rule depends on the
        # method, which the other settings may change.
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

        Python files that a recipe file names may be run; those that a run folder names
        require `trust`.
        """
        path = Path(path)
        # The `recipe.yaml` of a run folder requires trust even if it is named directly:
        # whoever made the folder wrote it, and the user may never have read it.
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

    def make_stream(self, run: RunState | None = None, *, outline: bool = False) -> TaskStream:
        """Create the stream of tasks, without those that were forgotten.

        Parameters
        ----------
        outline
            Use placeholders for data that would have to be downloaded.
        run
            The run that continues with these tasks, if any. If the examples of a task
            that it has learned are gone or have changed, the stream contains the task
            without its examples (`TaskStream.missing`).

        Raises
        ------
        InputError
            No task is left.
        """
        # without entries, `TaskStream` would complain that it has no tasks, without saying why
        if self.stream == [] and self.forgotten:
            raise _nothing_left(self.forgotten)
        # The segments of a graduated stream consist of the examples of all tasks, so no
        # task can be replaced with what the run has learned from it.
        past = past_of(run) if run and not self.graduated else Past()
        if isinstance(self.stream, list):
            scenario = self.scenario or "class"
            stream = own_stream(
                self.stream,
                scenario=scenario,
                seed=self.seed,
                past=past,
                outline=outline,
            )
        else:
            stream = past_benchmark(self.stream, self.seed, past, outline)
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

    def make_backbone(self, *, outline: bool = False, stream: TaskStream | None = None) -> Backbone:
        """Load the pre-trained model, on the accelerator if this machine has one.

        If the recipe says so, several processes shard its weights between them.

        Parameters
        ----------
        outline
            Create it without weights (see `perdure.models.outline`).
        stream
            The recipe's stream, if the caller has already created it. A network that is
            trained from scratch has its classes, unless the recipe lists them.
        """

        def classes() -> Sequence[str]:
            return (stream or self.make_stream(outline=outline)).classes

        backbone = backbones.make(self.backbone, classes=classes, seed=self.seed, outline=outline)
        if not outline:
            engine.place(backbone, self.make_training())
        return backbone

    def make_method(self) -> Method:
        """Create the method, with its settings."""
        return make_method(self.method)

    def make_rule(self) -> Rule:
        """Create the rule, with its settings."""
        return Rule.of(self.rule)

    def make_training(self) -> Training:
        """Create the settings for training."""
        return Training(**checked(Training, self.training, "training"))

    def make_posterior(self) -> PosteriorSettings:
        """Create the settings for the task posterior."""
        return PosteriorSettings(**checked(PosteriorSettings, self.posterior, "posterior"))

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
        outline: bool = False,
    ) -> Plan:
        """Create everything that the run needs, and check it before anything is trained.

        Parameters
        ----------
        stream, backbone
            The recipe's stream and backbone, if the caller has already created them.
        run
            The run to continue; tasks that it has learned may lack their examples.
        outline
            Create only what a dry run needs (see `dry_run`).
        """
        method = self.make_method()
        rule = self.make_rule()
        training = self.make_training()
        evaluation = self.make_evaluation()
        posterior = self.make_posterior()
        # these take no time; the data and the model below may take minutes
        _check_together(method, rule, training)
        check_alignment(training, rule)
        stream = stream or self.make_stream(run, outline=outline)
        stream = with_unknown(stream, evaluation, self.stream)
        backbone = backbone or self.make_backbone(outline=outline, stream=stream)
        plan = Plan(
            stream,
            backbone,
            method,
            rule,
            training,
            evaluation,
            seed=self.seed,
            never=never_trained(evaluation, self.seed),
            posterior=posterior,
        )
        check(plan)
        own_tables = isinstance(self.stream, list) and not self.graduated
        if self.scenario is None and own_tables and backbone.has_heads:
            _hint_at_domains(stream, len(run.tasks) if run else 0)
        return plan

    def run(
        self,
        output: str | Path,
        *,
        change: bool = False,
        features: Path | None = None,
        quiet: bool = True,
    ) -> Run:
        """Run the recipe in the folder `output`, or continue the run that is there.

        Everything is checked before anything is trained.

        Parameters
        ----------
        change
            Make this the recipe of an existing run, even if its settings differ.
        features
            A folder for the features of the frozen backbone, which other runs share.

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
        plan.backbone.features_in = features
        # the folder records the defaults, too, because a later version may have others
        plan = replace(plan, recipe=self.resolved(plan))
        story.run(plan, output, change=change, quiet=quiet)
        return Run(output)

    def dry_run(self, output: str | Path | None = None) -> DryRun:
        """Check a recipe, and count the parameters, examples, steps and measurements of its run.

        Nothing is downloaded, trained or written. The model's weights are not needed,
        only its `config.json`; with its tokenizer, prompts and answers are checked as
        well. The sizes of data sets that would have to be downloaded are taken from the
        recipe.

        Parameters
        ----------
        output
            The folder of the run. If it contains a run, only the remaining tasks are counted.

        Raises
        ------
        PerdureError
            `run` would fail before training starts, or the model is not on this machine.
        """
        folder = Path(output) if output is not None and is_run(Path(output)) else None
        with network.closed():
            state = read(folder) if folder else None
            plan = self.plan(run=state, outline=True)
            return counting.count(replace(plan, recipe=self.resolved(plan)), state, self.name)

    def resolved(self, plan: Plan) -> dict[str, object]:
        """Return the recipe with all defaults filled in."""
        # a run that has not forgotten anything has no lists of forgotten tasks and traces
        empty = {name for name in ("forgotten", "traces", "posterior") if not getattr(self, name)}
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
