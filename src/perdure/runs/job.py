"""The plan of a run: everything it needs, checked for consistency before anything is trained."""

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from perdure import registry
from perdure.data.task import Task, TaskStream
from perdure.errors import InputError
from perdure.evaluation import general, open_set, task_score
from perdure.evaluation.measure import Evaluation, check_search
from perdure.evaluation.posterior import PosteriorSettings
from perdure.learning import engine
from perdure.learning.method import Method, method_name
from perdure.learning.needs import check_needs
from perdure.learning.progress import check_optimizer
from perdure.learning.training import Training
from perdure.learning.wrapper import chain, inner_name
from perdure.merging.rule_settings import Rule
from perdure.merging.search import Search
from perdure.models.backbone import Backbone
from perdure.models.network import Network
from perdure.runs.expected import ExpectedTask
from perdure.runs.layout import Settings
from perdure.settings import Section, check_seed, checked, named


@dataclass(frozen=True)
class Plan:
    """Everything that a run needs: stream, backbone, method, rule and settings.

    Attributes
    ----------
    recipe
        The new content of the run's `recipe.yaml`; None if the file is to stay unchanged.
    never
        The tasks of `evaluation.general`, which are measured but never trained on.
    """

    stream: TaskStream
    backbone: Backbone
    method: Method
    rule: Rule
    training: Training
    evaluation: Evaluation
    seed: int
    recipe: Mapping[str, object] | None = None
    never: tuple[Task, ...] = ()
    posterior: PosteriorSettings = PosteriorSettings()


def check(plan: Plan) -> None:
    """Check that the parts of a run are valid and compatible with each other.

    Raises
    ------
    InputError
        A part is not valid, or two parts are not compatible.
    """
    kinds = {
        "stream": (plan.stream, TaskStream),
        "backbone": (plan.backbone, Backbone),
        "method": (plan.method, Method),
        "training": (plan.training, Training),
        "evaluation": (plan.evaluation, Evaluation),
        "posterior": (plan.posterior, PosteriorSettings),
    }
    # First of all, because the checks below use the attributes of these classes.
    for name, (given, kind) in kinds.items():
        if not isinstance(given, kind):
            raise InputError(
                f"`{name}` must be a `perdure.{kind.__name__}`, got {str(given)[:100]!r}."
            )
    check_seed(plan.seed)
    # A dataclass does not check the types of its fields.
    checked(Training, vars(plan.training), "training")
    checked(Evaluation, vars(plan.evaluation), "evaluation")
    checked(PosteriorSettings, vars(plan.posterior), "posterior")
    check_settings(plan.method)
    check_network(plan)
    check_needs(plan.method, plan.backbone, plan.stream)
    check_optimizer(plan.method, plan.training)
    check_answers(plan.backbone, [*plan.stream, *plan.never], plan.evaluation)
    check_alignment(plan.training, plan.rule)
    check_heads(plan)
    check_boundaries(plan)
    check_sharding(plan)
    check_posterior(plan)
    check_unknown(plan)
    if plan.training.packing:
        plan.backbone.check_packing()
    check_length(plan.stream, plan.rule)


def check_settings(method: Method) -> None:
    """Check the settings of a method that may have been created in Python, and of those inside it.

    Raises
    ------
    InputError
        A setting has the wrong type, or is out of its range.
    """
    for one in chain(method):
        names = registry.options(type(one))
        # A class may take a setting without keeping it; the method inside is checked by itself.
        settings = {name: getattr(one, name) for name in names if hasattr(one, name)}
        settings.pop("method", None)
        given = names.keys() - settings.keys()
        checked(type(one), settings, f"method `{method_name(one)}`", given=given)


def check_network(plan: Plan) -> None:
    """Check that a network that is trained from scratch can be trained on a stream.

    Raises
    ------
    InputError
        The method does not train all weights, or the network cannot read a task or has no
        output for one of its classes.
    """
    backbone = plan.backbone
    if not isinstance(backbone, Network):
        return
    method = plan.method
    if method.module != "full":
        # Some methods have no such setting, because they are designed for low-rank modules.
        is_fixed = method.module is None or "lora" in method.needs
        remedy = "Set `peft: full`."
        if is_fixed:
            remedy = "Choose a method that takes `peft: full`, such as `ewc` or `vcl`."
        trains = f"with `peft: {method.module}`" if method.module else "trains no weights, and"
        raise InputError(
            f"`{backbone.source}` is trained from scratch, but the method "
            f"`{inner_name(method)}` {trains} would leave its weights at "
            f"their random initial values. {remedy}"
        )
    for task in plan.stream:
        backbone.check_task(task)


def check_answers(backbone: Backbone, tasks: Sequence[Task], evaluation: Evaluation) -> None:
    """Check that a backbone can answer the tasks, and that their scores suit its answers.

    Raises
    ------
    InputError
        A task is answered with free text but the backbone has heads, a score does not
        suit the answers, or `evaluation.general` is set for a backbone with heads.
    """
    if evaluation.general and not backbone.writes:
        raise InputError(
            f"`evaluation.general` is for language models, which predict text: `{backbone.source}` "
            "answers with classes, by heads. Leave it out, or use a language model."
        )
    for task in tasks:
        if task.missing:
            continue
        if not task.classes and not backbone.writes:
            raise InputError(
                f"Task `{task.name}` is answered with free text, but `{backbone.source}` answers "
                "with classes, by heads. Use a language model as the backbone, or name the column "
                "of the class with `label`."
            )
        task_score.find(task.score, "classes" if task.classes else "text", task.name)


def check_alignment(training: Training, rule: Rule) -> None:
    """Check that heads can be aligned with the model that a rule produces.

    Raises
    ------
    InputError
        The rule does not produce a single model, or it finds its scale only later.
    """
    # Heads are aligned right after a task has been learned, before any search or routing.
    if training.alignment and (rule.searches or rule.routed):
        raise InputError(
            f"`alignment` needs one model with a fixed scale, but the rule is `{rule.label}`."
        )


def check_heads(plan: Plan) -> None:
    """Raise `InputError` if the tasks should share a head but cannot."""
    if not plan.training.shares_head:
        return
    if not plan.backbone.has_heads:
        raise InputError(
            f"`training.heads: shared` is for models that have heads: the output layer of "
            f"`{plan.backbone.source}` serves all tasks anyway. Leave it out."
        )
    if plan.stream.scenario != "domain":
        raise InputError(
            "`training.heads: shared` is for `scenario: domain`, where all tasks have the same "
            f"classes; the scenario is `{plan.stream.scenario}`."
        )
    # The order matters, too: a class is identified by the index of its output.
    first = plan.stream[0]
    for task in plan.stream:
        if task.classes != first.classes:
            raise InputError(
                "With `training.heads: shared` all tasks need their classes in the same order: "
                f"`{first.name}` has {list(first.classes)}, `{task.name}` {list(task.classes)}."
            )
    if plan.method.computes_heads:
        raise InputError(
            f"`training.heads: shared`: the method `{inner_name(plan.method)}` "
            "computes a separate head for each task."
        )
    if plan.training.alignment:
        raise InputError(
            "`alignment` aligns the heads of tasks with each other: "
            "with `heads: shared` there is only one."
        )


def check_boundaries(plan: Plan) -> None:
    """Raise `InputError` if tasks fade into each other, but a part of the run needs boundaries."""
    if plan.stream.fading is None:
        return
    if not plan.method.task_free:
        raise InputError(
            f"The method `{inner_name(plan.method)}` needs to know where a task ends, "
            "but the tasks of a graduated stream fade into each other. Use `bgd`, `badam`, "
            "`sequential`, or `replay` of one of them."
        )
    if plan.backbone.has_heads and not plan.training.shares_head:
        raise InputError(
            "The tasks of a graduated stream have no boundaries, and so no separate heads: set "
            "`training: {heads: shared}`."
        )
    if plan.training.epochs != 1:
        raise InputError(
            f"A graduated stream is read once, but `training.epochs` is {plan.training.epochs}: "
            "set it to 1."
        )


def check_sharding(plan: Plan) -> None:
    """Raise `InputError` if the weights are to be sharded, but the method trains all of them."""
    if engine.shards(plan.training) and plan.method.module == "full":
        raise InputError(
            "`sharding: fsdp` shards frozen weights, but `peft: full` trains a change of all of "
            "them, which every process would store. Use `peft: lora`, or leave the sharding out."
        )


def check_posterior(plan: Plan) -> None:
    """Check that the examples of each task suffice for the settings of the task posterior.

    Raises
    ------
    InputError
        A temperature is to be fitted, but a class has fewer than two training examples.
    """
    if plan.posterior.temperature != "fitted":
        return
    for task in plan.stream:
        # A dry run may only know how many examples there are.
        if task.missing or isinstance(task, ExpectedTask):
            continue
        counts = Counter(task.groups("train"))
        for group, name in enumerate(task.classes):
            if counts[group] < 2:
                raise InputError(
                    "`posterior.temperature: fitted` needs at least two training examples of "
                    f"each class, but class `{name}` of task `{task.name}` has {counts[group]}. "
                    "Add examples, remove the class, or set the temperature to a number such as 1."
                )


def check_unknown(plan: Plan) -> None:
    """Check that inputs that belong to no task can be recognised, if that is to be measured.

    Raises
    ------
    InputError
        The backbone has no heads, the task posterior has no distances of validation
        examples or is not measured, or the stream has no such inputs.
    """
    source = open_set.source(plan.evaluation.unknown)
    if source is None:
        return
    if not plan.backbone.has_heads:
        raise InputError(
            "`evaluation.unknown` is for classifiers with a head for each task, as `perdure "
            f"predict --unknown` is; `{plan.backbone.source}` has none. Leave it out."
        )
    if plan.posterior.temperature != "fitted":
        raise InputError(
            "`evaluation.unknown` needs the distances of validation examples, which a run stores "
            "with `posterior: {temperature: fitted}`. Begin a run with this setting, or leave "
            "`evaluation.unknown` out."
        )
    if "posterior" not in plan.evaluation.task_ids:
        raise InputError(
            "`evaluation.unknown` compares inputs with their most likely task: add `posterior` to "
            f"`evaluation.task_ids`, which are {list(plan.evaluation.task_ids)}."
        )
    # A benchmark that is not here now has no examples, and nothing is measured.
    is_here = not any(task.missing or isinstance(task, ExpectedTask) for task in plan.stream)
    if not source.data and plan.stream.unknown is None and is_here:
        raise InputError(
            f"`evaluation.unknown` is true, but the stream `{plan.stream.name}` comes with no "
            "inputs that belong to none of its tasks. Name a table, or a folder of images."
        )


def check_length(stream: TaskStream, rule: Rule) -> None:
    """Check that a rule can combine all tasks of a stream.

    Raises
    ------
    InputError
        The stream has more tasks than the rule can combine.
    """
    most = rule.nature.most
    if most and len(stream) > most:
        raise InputError(
            f"The rule `{rule.name}` combines at most {most} tasks; the stream has {len(stream)}."
        )


def check_examples(plan: Plan, learned: int, due: Sequence[int]) -> None:
    """Raise `InputError` if the run lacks examples that it needs to learn or measure more tasks.

    Parameters
    ----------
    learned
        The number of tasks that the run has already learned.
    due
        The steps that will be measured.
    """
    missing = plan.stream.missing
    new = plan.stream.names[learned:]
    for name in new:
        if name in missing:
            raise InputError(
                f"Task `{name}` is to be learned, but its examples are missing: {missing[name]}"
            )
    # A learned task does not need its examples, unless the method trains on those of all tasks.
    if new and missing and plan.method.keeps_all:
        name, reason = next(iter(missing.items()))
        raise InputError(
            f"The method `{inner_name(plan.method)}` trains on the examples of all "
            f"tasks, but those of `{name}` are missing: {reason} "
            "Put them back, or start a run with a method that does not need old examples."
        )
    for step in due:
        check_search(plan.stream, step, plan.rule)


def make_method(section: Section) -> Method:
    """Create a method from its name, or from a mapping of its name and settings.

    For a method that wraps another, the setting `method` is the section of the inner method.
    """
    name, options = named(section, "method")
    kind = registry.find("method", name)
    wrapped = {}
    if "method" in registry.options(kind) and isinstance(options.get("method"), (str, dict)):
        wrapped = {"method": make_method(options.pop("method"))}
    # The inner method has already been checked, with its own name in the messages.
    settings = checked(kind, options, f"method `{name}`", given=wrapped)
    return kind(**settings, **wrapped)


# -- the settings of a plan


def settings_of(plan: Plan) -> Settings:
    """Return all settings of a run except its stream, in the form used in a recipe."""
    rule = plan.rule
    # The settings of a search matter only if there is one.
    searched = {"search": _plain(rule.search)} if rule.searches else {}
    training = _plain(plan.training)
    # Folders from before these settings existed lack them, and must still compare as equal.
    if not plan.training.shares_head:
        del training["heads"]
    if plan.training.sharding == "none":
        del training["sharding"]
    for name in ("packing", "gradient_checkpointing"):
        if not training[name]:
            del training[name]
    evaluation = _plain(plan.evaluation)
    evaluation["general"] = general.with_current_digest(plan.evaluation.general)
    for name in ("general", "unknown"):
        if evaluation[name] is None:
            del evaluation[name]
    # A folder from before the section existed has the default settings.
    usual = plan.posterior == PosteriorSettings()
    posterior = {} if usual else {"posterior": _of_posterior(plan.posterior)}
    return {
        "backbone": plan.backbone.settings,
        "method": _of_method(plan.method),
        "rule": {
            "name": rule.name,
            "space": rule.space,
            "since": rule.since,
            **searched,
            **rule.options,
        },
        "training": training,
        **posterior,
        "evaluation": evaluation,
        "seed": plan.seed,
    }


def _of_posterior(settings: PosteriorSettings) -> dict[str, object]:
    """Return the settings of the task posterior, as in folders from before `covariance`."""
    values = _plain(settings)
    if settings.covariance == "shared":
        del values["covariance"]
    return values


def _of_method(method: Method) -> dict[str, object]:
    """Return a method's name and settings, including those of a method that it wraps."""
    options: dict[str, object] = {"name": method_name(method)}
    # Fields with `init=False` are the method's state, not settings.
    for field in dataclasses.fields(method):
        if field.init:
            value = getattr(method, field.name)
            options[field.name] = _of_method(value) if isinstance(value, Method) else value
    return options


def _plain(settings: Training | Evaluation | PosteriorSettings | Search) -> dict[str, object]:
    """Return a dataclass as a dictionary for YAML, with lists instead of tuples."""
    fields: dict[str, object] = {}
    for name, value in dataclasses.asdict(settings).items():
        fields[name] = list(value) if isinstance(value, tuple) else value
    return fields
