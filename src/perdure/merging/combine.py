"""From adapters to one model: task vectors, a rule, and the model as it acts at test time."""

import contextlib
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_origin

from torch import Tensor, nn

from perdure import registry
from perdure.errors import InputError
from perdure.merging.rule_settings import Rule, RuleLike, Since, Space
from perdure.models import adapters
from perdure.models.adapters import Adapter
from perdure.models.backbone import Backbone
from perdure.models.mixture import Choice, Mixture
from perdure.vectors.task_vector import LowRank, TaskVector


def check_fits(rule: Rule, module: adapters.Kind | None) -> None:
    """Check that a rule can combine what a kind of module has learned, by what it declares.

    Raises
    ------
    InputError
        It cannot, or what it returns is nothing that a rule may return.
    """
    if module == "bottleneck" and rule.space == "delta":
        raise InputError("`peft: bottleneck` has no ΔW: give the rule `space: factor`.")
    if rule.nature.low_rank and (module == "full" or rule.space == "factor"):
        given = (
            f"`space: {rule.space}` of `peft: {module}`"
            if rule.space == "factor"
            else f"`peft: {module}`"
        )
        raise InputError(
            f"The rule `{rule.name}` combines low-rank changes, and what {given} gives is not low-rank: use LoRA in "
            "`space: delta`."
        )
    _check_returned(rule, _return_type(registry.find("rule", rule.name)))


def _return_type(function: Callable[..., Any]) -> type:
    """Return the type that a rule says it returns; `TaskVector` where it says nothing that excludes it."""
    annotation = inspect.signature(function, eval_str=True).return_annotation
    kind = type(None) if annotation is None else get_origin(annotation) or annotation
    if (
        kind in (Any, inspect.Signature.empty)
        or not isinstance(kind, type)
        or issubclass(TaskVector, kind)
    ):
        return TaskVector
    return kind


def _check_returned(rule: Rule, kind: type) -> None:
    """Check the type of what a rule returns, which may be a user's own."""
    if not issubclass(kind, TaskVector | dict | Mixture):
        raise InputError(
            f"The rule `{rule.name}` returned {kind.__name__}: it must return a `TaskVector`, a dict with one for each "
            "task, or a `Mixture`."
        )
    if not issubclass(kind, TaskVector) and not rule.routed:
        raise InputError(
            f"The rule `{rule.name}` returned {kind.__name__}, so that what acts depends on the input: declare it as "
            '`@nature("routed", …)`.'
        )


def task_vectors(
    learned: Sequence[Adapter], *, space: Space = "delta", since: Since = "pretrained"
) -> dict[str, TaskVector]:
    """The task vector of each adapter, by task name.

    Raises
    ------
    BackboneError
        Bottleneck adapters in delta space.
    InputError
        Adapters of different shapes in factor space.
    """
    if space == "factor":
        return _factor_vectors(learned, since)
    vectors = {}
    for adapter in learned:
        vector = _delta(adapter, adapter.parameters)
        if since == "start" and _changes(adapter.start):
            vector = vector - _delta(adapter, adapter.start)
        vectors[adapter.name] = vector
    return vectors


def _delta(adapter: Adapter, parameters: adapters.Parameters) -> TaskVector:
    found = adapters.deltas(adapter.config, parameters)
    return TaskVector(
        {
            name: LowRank(*value) if isinstance(value, tuple) else value
            for name, value in found.items()
        }
    )


def _changes(parameters: adapters.Parameters) -> bool:
    """Whether parameters change the model: a fresh LoRA has B = 0, a fresh full module nothing but zeros."""
    return any(value.any() for name, value in parameters.items() if ".lora_A." not in name)


def _factor_vectors(learned: Sequence[Adapter], since: Since) -> dict[str, TaskVector]:
    origin = learned[0].start
    vectors = {}
    for adapter in learned:
        before = adapter.start if since == "start" else origin
        shapes = {k: v.shape for k, v in adapter.parameters.items()}
        if shapes != {k: v.shape for k, v in origin.items()} or adapters.scale(
            adapter
        ) != adapters.scale(learned[0]):
            raise InputError(
                f"The adapter of `{adapter.name}` has another shape or scale; use `space: delta`."
            )
        vectors[adapter.name] = TaskVector(
            {k: v - before[k] for k, v in adapter.parameters.items()}
        )
    return vectors


@dataclass(frozen=True)
class Combined:
    """What a rule made of the adapters: one task vector, one for each task, or a mixture of experts.

    In factor space `origin` is the adapter whose start the vectors are relative to. `label` is that of the rule.
    """

    vectors: TaskVector | dict[str, TaskVector] | Mixture
    origin: Adapter | None = None
    label: str = ""

    @property
    def routed(self) -> bool:
        """Whether each task has a model of its own."""
        return isinstance(self.vectors, dict) or self.picks

    @property
    def picks(self) -> bool:
        """Whether the task posterior picks one task for each sample."""
        return isinstance(self.vectors, Mixture) and not self.vectors.gate_rank

    @contextlib.contextmanager
    def applied(self, backbone: Backbone, task: str | None = None) -> Iterator[Choice]:
        """The backbone with the combination in it, while the block runs; afterwards it is as before, bit for bit.

        Where the posterior picks, `task` acts on all samples until the `Choice` is told those of the next batch.
        """
        if isinstance(self.vectors, Mixture):
            with adapters.disabled(backbone.model), self.vectors.inserted(backbone.model) as choice:
                choice.of([task])
                yield choice
            return
        vector = self.vectors.get(task or "") if isinstance(self.vectors, dict) else self.vectors
        if vector is not None and self.origin is not None:
            with _adapted(backbone.model, self.origin, vector):
                yield Choice()
        else:  # no vector is a task to come: nothing has been learned for it
            with (
                adapters.disabled(backbone.model),
                folded(backbone.model, vector or TaskVector({})),
            ):
                yield Choice()


@contextlib.contextmanager
def folded(model: nn.Module, vector: TaskVector) -> Iterator[None]:
    """W + ΔW in the place of each W of a vector in delta space, while the block runs."""
    with adapters.folded(model, {name: vector.dense(name) for name in vector.entries}):
        yield


@contextlib.contextmanager
def _adapted(model: nn.Module, origin: Adapter, vector: TaskVector) -> Iterator[None]:
    """Phi_pre + tau in the adapter itself, whose own parameters are put back."""
    before = adapters.read(model) if adapters.attached(model) else None
    if before is None:
        adapters.attach(model, origin.config)
    try:
        adapters.write(
            model, {name: origin.start[name] + vector.dense(name) for name in origin.start}
        )
        yield
    finally:
        if before is None:
            adapters.detach(model)
        else:
            adapters.write(model, before)


def combine(learned: Sequence[Adapter], rule: RuleLike) -> Combined:
    """Apply a rule to the adapters of the tasks, in the order in which they were learned.

    Parameters
    ----------
    rule
        A `Rule`, its name, or a mapping of `name` and settings.

    Raises
    ------
    UnknownName
        There is no such rule.
    InputError
        The rule's scale is still `search`.
    """
    rule = Rule.of(rule)
    if rule.searches:
        raise InputError(
            "`scale: search` needs validation data; give a number, `1/n` or `1/sqrt(n)` here."
        )
    kept: dict[str, dict[str, Mapping[str, Tensor]]] = {}
    for adapter in learned:
        for name, by_layer in adapter.kept.items():
            kept.setdefault(name, {})[adapter.name] = by_layer
    merged = rule(task_vectors(learned, space=rule.space, since=rule.since), kept)
    _check_returned(rule, type(merged))
    merged = (
        merged.made() if isinstance(merged, TaskVector) else merged
    )  # it will be applied many times
    return Combined(merged, learned[0] if rule.space == "factor" else None, rule.label)
