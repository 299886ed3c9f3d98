"""All that a run needs, and whether it goes together: checked before anything is trained."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from perdure import registry
from perdure.data.task import TaskStream
from perdure.errors import InputError
from perdure.evaluation.measure import Evaluation, check_search
from perdure.learning.method import Method, Need, method_name
from perdure.learning.training import Training
from perdure.merging.rule_settings import Rule
from perdure.models.backbone import Backbone
from perdure.settings import Section, check_seed, checked, named


@dataclass(frozen=True)
class Plan:
    """All that a run needs: what is learned, by what, and how.

    Attributes
    ----------
    recipe
        What the run's `recipe.yaml` is to say from now on; None where it says it already.
    """

    stream: TaskStream
    backbone: Backbone
    method: Method
    rule: Rule
    training: Training
    evaluation: Evaluation
    seed: int
    recipe: Mapping[str, Any] | None = None


def check(plan: Plan) -> None:
    """Check that the parts of a run are what they should be, and go together.

    Raises
    ------
    InputError
        They do not.
    """
    kinds = {
        "stream": (plan.stream, TaskStream),
        "backbone": (plan.backbone, Backbone),
        "method": (plan.method, Method),
        "training": (plan.training, Training),
        "evaluation": (plan.evaluation, Evaluation),
    }
    for name, (given, kind) in kinds.items():
        if not isinstance(given, kind):
            raise InputError(
                f"`{name}` must be a `perdure.{kind.__name__}`, got {str(given)[:100]!r}."
            )
    check_seed(plan.seed)
    checked(Training, vars(plan.training), "training")
    checked(Evaluation, vars(plan.evaluation), "evaluation")
    check_needs(plan.method, plan.backbone, plan.stream)
    check_alignment(plan.training, plan.rule)
    check_heads(plan)
    check_length(plan.stream, plan.rule)


def check_needs(method: Method, backbone: Backbone, stream: TaskStream) -> None:
    """Check that a method finds what it says that it needs.

    Raises
    ------
    InputError
        The backbone has no heads, the module is no LoRA, or a task has no classes.
    """
    without_classes = [task.name for task in stream if not task.classes]
    missing: dict[Need, str] = {}
    if not backbone.has_heads:
        missing["heads"] = (
            f"a head for each task, which `{backbone.source}` has not: it answers in its own words"
        )
    if method.module != "lora":
        missing["lora"] = (
            f"`peft: lora`, but has {f'`peft: {method.module}`' if method.module else 'no module'}"
        )
    if without_classes:
        missing["classes"] = f"tasks with classes, but `{without_classes[0]}` has none"
    for need in missing:
        if need in method.needs:
            raise InputError(
                f"The method `{method_name(method)}` needs {missing[need]}. Choose another method."
            )


def check_alignment(training: Training, rule: Rule) -> None:
    """Whether heads can be aligned with a rule.

    Raises
    ------
    InputError
        The rule gives no single model, or its scale is found only afterwards.
    """
    if training.alignment and (rule.searches or rule.routed):
        raise InputError(
            f"`alignment` needs one model with a fixed scale, but the rule is `{rule.label}`."
        )


def check_heads(plan: Plan) -> None:
    """Raise `InputError` if tasks are to share a head, and cannot."""
    if not plan.training.shares_head:
        return
    if plan.stream.scenario != "domain":
        raise InputError(
            f"`training.heads: shared` is for `scenario: domain`, where all tasks have the same classes; the scenario "
            f"is `{plan.stream.scenario}`."
        )
    first = plan.stream[0]
    for task in plan.stream:
        if task.classes != first.classes:
            raise InputError(
                f"With `training.heads: shared` all tasks need their classes in the same order: `{first.name}` has "
                f"{list(first.classes)}, `{task.name}` {list(task.classes)}."
            )
    if not plan.method.trains:
        raise InputError(
            f"`training.heads: shared`: the method `{method_name(plan.method)}` computes a head per task."
        )
    if plan.training.alignment:
        raise InputError(
            "`alignment` aligns the heads of tasks with each other: with `heads: shared` there is one."
        )


def check_length(stream: TaskStream, rule: Rule) -> None:
    """Whether a rule can combine so many tasks.

    Raises
    ------
    InputError
        It cannot.
    """
    most = rule.nature.most
    if most and len(stream) > most:
        raise InputError(
            f"The rule `{rule.name}` combines at most {most} tasks; the stream has {len(stream)}."
        )


def check_examples(plan: Plan, learned: int, due: Sequence[int]) -> None:
    """Raise `InputError` if examples are missing without which what is left cannot be learned or measured.

    Parameters
    ----------
    learned
        The number of tasks that the run has learned.
    due
        The steps that will be measured.
    """
    missing, new = plan.stream.missing, plan.stream.names[learned:]
    for name in new:
        if name in missing:
            raise InputError(
                f"Task `{name}` is to be learned, but its examples are not here: {missing[name]}"
            )
    if new and missing and plan.method.keeps_all:
        name, reason = next(iter(missing.items()))
        raise InputError(
            f"The method `{method_name(plan.method)}` trains on the examples of all tasks, but those of `{name}` are "
            f"not here: {reason} Put them back, or begin a run with a method that needs no old examples."
        )
    for step in due:
        check_search(plan.stream, step, plan.rule)


def make_method(section: Section) -> Method:
    """A method from its name, or from a mapping of its name and settings; one that wraps another has it as `method`."""
    name, options = named(section, "method")
    found = registry.find("method", name)
    inner = {}
    if "method" in registry.options(found) and isinstance(options.get("method"), (str, dict)):
        inner = {"method": make_method(options.pop("method"))}
    return found(**checked(found, options, f"method `{name}`", given=inner), **inner)


# -- what was run


def settings_of(plan: Plan) -> dict[str, Any]:
    """Return all settings of a run but its stream, as a recipe states them."""
    backbone, method, rule = plan.backbone, plan.method, plan.rule
    searched = {"search": _plain(rule.search)} if rule.searches else {}
    training = _plain(plan.training)
    if not plan.training.shares_head:
        del training["heads"]  # folders from before there was a choice lack it, and are the same
    return {
        "backbone": backbone.settings,
        "method": _of_method(method),
        "rule": {
            "name": rule.name,
            "space": rule.space,
            "since": rule.since,
            **searched,
            **rule.options,
        },
        "training": training,
        "evaluation": _plain(plan.evaluation),
        "seed": plan.seed,
    }


def _of_method(method: Method) -> dict[str, Any]:
    """A method's name and settings; those of one that it wraps inside."""
    options = {
        field.name: getattr(method, field.name)
        for field in dataclasses.fields(method)
        if field.init
    }
    options = {
        name: _of_method(value) if isinstance(value, Method) else value
        for name, value in options.items()
    }
    return {"name": method_name(method), **options}


def _plain(settings: Any) -> dict[str, Any]:
    """A dataclass as YAML can hold it."""
    values = dataclasses.asdict(settings)
    return {
        name: list(value) if isinstance(value, tuple) else value for name, value in values.items()
    }
