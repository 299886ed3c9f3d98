"""From adapters to one model: task vectors, a rule, and the model used at test time."""

import contextlib
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_origin

from torch import Size, Tensor, nn

from perdure import registry
from perdure.errors import InputError
from perdure.merging.rule_settings import Rule, RuleLike, Since, Space
from perdure.models import adapters
from perdure.models.adapters import Adapter
from perdure.models.backbone import Backbone
from perdure.models.mixture import Choice, Mixture
from perdure.vectors.task_vector import Entry, LowRank, TaskVector


def check_fits(rule: Rule, module: adapters.Kind | None) -> None:
    """Check a rule's declaration to see if it can combine adapters of this kind.

    Raises
    ------
    InputError
        The rule cannot combine them, or declares a return type that rules must not have.
    """
    if module == "bottleneck" and rule.space == "delta":
        raise InputError("`peft: bottleneck` has no ΔW: set the rule's `space: factor`.")
    is_full = module == "full" or rule.space == "factor"
    if rule.nature.low_rank and is_full:
        given = f"`peft: {module}`"
        if rule.space == "factor":
            given = f"`space: {rule.space}` of {given}"
        raise InputError(
            f"The rule `{rule.name}` combines low-rank changes, but changes by {given} "
            "are not low-rank: use LoRA in `space: delta`."
        )
    function = registry.find("rule", rule.name)
    _check_returned(rule, _return_type(function))


def _return_type(function: Callable[..., object]) -> type:
    """Return a rule's declared return type, or `TaskVector` if the annotation allows it."""
    annotation = inspect.signature(function, eval_str=True).return_annotation
    if annotation is None:
        return type(None)
    kind = get_origin(annotation) or annotation
    # If the annotation is vague (`Any`, a union), the returned value is checked instead. A type
    # that is certainly wrong can be refused now, before hours of training.
    if (
        kind in (Any, inspect.Signature.empty)
        or not isinstance(kind, type)
        or issubclass(TaskVector, kind)
    ):
        return TaskVector
    return kind


def _check_returned(rule: Rule, kind: type) -> None:
    """Check a rule's return type, because users can write their own rules."""
    if not issubclass(kind, TaskVector | dict | Mixture):
        raise InputError(
            f"The rule `{rule.name}` returned {kind.__name__}: it must return a `TaskVector`, "
            "a dict with one for each task, or a `Mixture`."
        )
    if not issubclass(kind, TaskVector) and not rule.routed:
        raise InputError(
            f"The rule `{rule.name}` returned {kind.__name__}, which acts differently for "
            'different inputs: declare it as `@nature("routed", …)`.'
        )


def task_vectors(
    learned: Sequence[Adapter], *, space: Space = "delta", since: Since = "pretrained"
) -> dict[str, TaskVector]:
    """Return each adapter's task vector, by task name.

    Raises
    ------
    BackboneError
        The adapters are bottlenecks, which have no ΔW, and `space` is "delta".
    InputError
        The adapters have different shapes or scales, and `space` is "factor".
    """
    if space == "factor":
        return _factor_vectors(learned, since)
    vectors: dict[str, TaskVector] = {}
    for adapter in learned:
        vector = _delta(adapter, adapter.parameters)
        # A difference has twice the rank, so skip it if the start changed nothing.
        if since == "start" and _changes(adapter.start):
            vector = vector - _delta(adapter, adapter.start)
        vectors[adapter.name] = vector
    return vectors


def _delta(adapter: Adapter, parameters: adapters.Parameters) -> TaskVector:
    """Return ΔW of each layer, in factors if the adapter is low-rank."""
    entries: dict[str, Entry] = {}
    for name, change in adapters.deltas(adapter.config, parameters).items():
        if isinstance(change, tuple):
            B, A = change
            entries[name] = LowRank(B, A)
        else:
            entries[name] = change
    return TaskVector(entries)


def _changes(parameters: adapters.Parameters) -> bool:
    """Return True if these adapter parameters change the model."""
    # A fresh LoRA has B = 0 and a random A; a fresh full module is all zeros.
    others = [value for name, value in parameters.items() if ".lora_A." not in name]
    return any(value.any() for value in others)


def _factor_vectors(learned: Sequence[Adapter], since: Since) -> dict[str, TaskVector]:
    """Return task vectors in factor space: the adapters' own parameters minus their start."""
    # Factors can only be subtracted and averaged if they have the same shape, and their
    # product B A also needs the same scale.
    first = learned[0]
    scale = adapters.scale(first)
    shapes = _shapes(first.start)
    vectors: dict[str, TaskVector] = {}
    for adapter in learned:
        fits = _shapes(adapter.parameters) == shapes and adapters.scale(adapter) == scale
        if not fits:
            raise InputError(
                f"The adapter of `{adapter.name}` has a different shape or scale than "
                f"`{first.name}`'s; use `space: delta`."
            )
        start = adapter.start if since == "start" else first.start
        entries: dict[str, Entry] = {}
        for name, value in adapter.parameters.items():
            entries[name] = value - start[name]
        vectors[adapter.name] = TaskVector(entries)
    return vectors


def _shapes(parameters: adapters.Parameters) -> dict[str, Size]:
    return {name: value.shape for name, value in parameters.items()}


@dataclass(frozen=True)
class Combined:
    """A rule's result: one task vector, one per task, or a mixture of experts.

    Attributes
    ----------
    origin
        In factor space, the adapter whose start the vectors are relative to; otherwise None.
    label
        The rule's label.
    """

    vectors: TaskVector | dict[str, TaskVector] | Mixture
    origin: Adapter | None = None
    label: str = ""

    @property
    def routed(self) -> bool:
        """True if each task has its own model."""
        return isinstance(self.vectors, dict) or self.picks

    @property
    def picks(self) -> bool:
        """True if the task posterior picks one task for each sample."""
        return isinstance(self.vectors, Mixture) and not self.vectors.gate_rank

    @contextlib.contextmanager
    def applied(self, backbone: Backbone, task: str | None = None) -> Iterator[Choice]:
        """Apply the combination to the backbone for the duration of the block.

        Afterwards, the backbone is restored bit for bit. If the task posterior picks a task per
        sample, `task` applies to all samples until the `Choice` gets the next batch's tasks.
        """
        model = backbone.model
        if isinstance(self.vectors, Mixture):
            with adapters.disabled(model), self.vectors.inserted(model) as choice:
                choice.of([task])
                yield choice
            return

        vector = self.vectors
        if isinstance(vector, dict):
            # A task without a vector has not been learned yet.
            vector = vector.get(task or "")  # (no task is called by the empty name)
        if vector is not None and self.origin is not None:
            with _adapted(model, self.origin, vector):
                yield Choice()
        else:
            vector = vector or TaskVector({})
            with adapters.disabled(model), folded(model, vector):
                yield Choice()


@contextlib.contextmanager
def folded(model: nn.Module, vector: TaskVector) -> Iterator[None]:
    """Replace W by W + ΔW in each layer of a delta-space vector, for the duration of the block."""
    changes = {name: vector.dense(name) for name in vector.entries}
    with adapters.folded(model, changes):
        yield


@contextlib.contextmanager
def _adapted(model: nn.Module, origin: Adapter, vector: TaskVector) -> Iterator[None]:
    """Write start + vector into the adapter's parameters, and restore them afterwards."""
    # The model may have an adapter attached, such as that of the task being learned.
    before = adapters.read(model) if adapters.attached(model) else None
    if before is None:
        adapters.attach(model, origin.config)
    try:
        parameters: dict[str, Tensor] = {}
        for name, start in origin.start.items():
            parameters[name] = start + vector.dense(name)
        adapters.write(model, parameters)
        yield
    finally:
        if before is None:
            adapters.detach(model)
        else:
            adapters.write(model, before)


def combine(learned: Sequence[Adapter], rule: RuleLike) -> Combined:
    """Apply a rule to the tasks' adapters, given in the order they were learned.

    Parameters
    ----------
    rule
        A `Rule`, a rule's name, or a mapping with `name` and settings.

    Raises
    ------
    UnknownName
        There is no such rule.
    InputError
        The rule's scale is `search` and has not been replaced by a value yet.
    """
    rule = Rule.of(rule)
    if rule.searches:
        raise InputError(
            "`scale: search` needs validation data; give a number, `1/n` or `1/sqrt(n)` here."
        )
    kept: dict[str, dict[str, Mapping[str, Tensor]]] = {}
    for adapter in learned:
        for name, by_layer in adapter.kept.items():
            by_task = kept.setdefault(name, {})
            by_task[adapter.name] = by_layer

    vectors = task_vectors(
        learned,
        space=rule.space,
        since=rule.since,
    )
    merged = rule(vectors, kept)
    _check_returned(rule, type(merged))
    if isinstance(merged, TaskVector):
        # The combination is applied many times, so compute entries that the rule deferred now.
        merged = merged.made()
    return Combined(
        merged,
        origin=learned[0] if rule.space == "factor" else None,
        label=rule.label,
    )
