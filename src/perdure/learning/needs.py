"""The check that a model and its tasks have what a method needs, before anything is trained."""

from collections.abc import Iterable

from perdure.data.task import Task
from perdure.errors import InputError
from perdure.learning.method import Method, Need, method_name
from perdure.learning.wrapper import Wrapper
from perdure.models.backbone import Backbone
from perdure.models.language import LanguageModel


def check_needs(method: Method, backbone: Backbone, tasks: Iterable[Task]) -> None:
    """Check that everything a method requires is available.

    Raises
    ------
    InputError
        The method requires heads, a language model or a causal one, LoRA modules, tasks with
        classes, or prompts without turns, which are not available.
    """
    missing = _missing_of_model(backbone) | _missing_of_tasks(tasks)
    if method.module != "lora":
        module = f"`peft: {method.module}`" if method.module else "no module"
        missing["lora"] = f"`peft: lora`, but has {module}"
    for need, problem in missing.items():
        if need in method.needs:
            owner = _owner(method, need)
            raise InputError(f"The method `{method_name(owner)}` needs {problem}. {owner.instead}")


def _missing_of_model(backbone: Backbone) -> dict[Need, str]:
    """Return what a model does not have, as the end of a sentence about the method."""
    missing: dict[Need, str] = {}
    if not backbone.has_heads:
        instead = "it answers with text" if backbone.writes else "all tasks share its output layer"
        missing["heads"] = (
            f"a head for each task, which `{backbone.source}` does not have: {instead}"
        )
    if not backbone.writes:
        missing["words"] = (
            f"a language model, which writes answers, but `{backbone.source}` answers with classes"
        )
    if isinstance(backbone, LanguageModel) and backbone.decodes:
        missing["causal"] = (
            "a causal language model, which can sample prompts, but "
            f"`{backbone.source}` has an encoder"
        )
    return missing


def _missing_of_tasks(tasks: Iterable[Task]) -> dict[Need, str]:
    """Return what tasks do not have, with the name of the first one that lacks it."""
    missing: dict[Need, str] = {}
    for task in tasks:
        if not task.classes:
            missing.setdefault("classes", f"tasks with classes, but `{task.name}` has none")
        # The columns of a task whose examples are lost are unknown.
        if not task.missing and "messages" in task.train.column_names:
            missing.setdefault(
                "texts", f"prompts that are texts, but those of `{task.name}` are conversations"
            )
    return missing


def _owner(method: Method, need: Need) -> Method:
    """Return the method that has a need: a wrapper has those of its inner method, too."""
    while isinstance(method, Wrapper) and need in method.method.needs:
        method = method.method
    return method
