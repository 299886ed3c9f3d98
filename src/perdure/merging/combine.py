"""Functions that combine adapters into one model by applying a rule to their task vectors."""

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
    """Check that a rule's declaration allows it to combine adapters of this kind.

    Raises
    ------
    InputError
        The rule cannot combine such adapters, or it declares an invalid return type.
    """
    if module == "bottleneck" and rule.space == "delta":
        raise InputError("`peft: bottleneck` has no ΔW: set the rule's `space: factor`.")
    is_full = module == "full" or rule.space == "factor"
    if rule.nature.low_rank and is_full:
        given = f"`peft: {module}`"
        if rule.space == "factor":
            given = f"`space: {rule.space}` of {given}"
        raise InputError(
            f"The rule `{rule.name}` combines low-rank changes only, but those of {given} "
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
    # If the annotation is vague (`Any`, a union), check the returned value later instead.
    # A type that is definitely wrong can be rejected now, before hours of training.
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
        `space` is "delta", and the adapters are bottlenecks, which have no ΔW.
    InputError
        `space` is "factor", and the adapters differ in shape or scale.
    """
    if space == "factor":
        return _factor_vectors(learned, since)
    vectors: dict[str, TaskVector] = {}
    for adapter in learned:
        vector = _delta(adapter, adapter.parameters)
        # The difference has twice the rank, so do not subtract a start that changes nothing.
        if since == "start" and _changes(adapter.start):
            vector = vector - _delta(adapter, adapter.start)
        vectors[adapter.name] = vector
    return vectors


def _delta(adapter: Adapter, parameters: adapters.Parameters) -> TaskVector:
    """Return ΔW for each layer, as low-rank factors if the adapter is low-rank."""
    entries: dict[str, Entry] = {}
    for name, change in adapters.deltas(adapter.config, parameters).items():
        if isinstance(change, tuple):
            B, A = change
            entries[name] = LowRank(B, A)
        else:
            entries[name] = change
    return TaskVector(entries)


def _changes(parameters: adapters.Parameters) -> bool:
    """Return True if the given adapter parameters change the model."""
    # A fresh LoRA has B = 0 and a random A; a fresh full module is all zeros.
    others = [value for name, value in parameters.items() if ".lora_A." not in name]
    return any(value.any() for value in others)


def _factor_vectors(learned: Sequence[Adapter], since: Since) -> dict[str, TaskVector]:
    """Return task vectors in factor space, which are adapter parameters minus their start values.

    If `since` is "pretrained", all vectors are relative to the start of the first adapter.
    """
    # Factors can only be subtracted and averaged if their shapes are equal. The product B
    # A also needs the same scale.
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
    """The result of a rule, which is one task vector, one per task, or a mixture of experts.

    Attributes
    ----------
    origin
        In factor space, the adapter whose start values the vectors are relative to;
        otherwise None.
    label
        The rule's label, such as "ties(density=0.3)".
    in_weights
        True if the weights of the model include a change beside `vectors`, as in a search.
    """

    vectors: TaskVector | dict[str, TaskVector] | Mixture
    origin: Adapter | None = None
    label: str = ""
    in_weights: bool = False

    @property
    def routed(self) -> bool:
        """True if the model differs between tasks."""
        return isinstance(self.vectors, dict) or self.picks

    @property
    def picks(self) -> bool:
        """True if the task posterior picks one task for each sample."""
        return isinstance(self.vectors, Mixture) and not self.vectors.gate_rank

    def digest(self, task: str | None) -> str | None:
        """Return a digest of the change to the backbone, for a task if the combination is routed.

        Two combinations with the same digest make the same change. None means that this is
        not known: in factor space, in weights, behind a gate, and for merged changes that
        are not low-rank, which differ after each task and take long to read.
        """
        if self.origin is not None or self.in_weights:
            return None
        vectors = self.vectors
        if isinstance(vectors, TaskVector):
            low_rank = all(isinstance(entry, LowRank) for entry in vectors.entries.values())
            return vectors.digest if low_rank else None
        if isinstance(vectors, Mixture):
            if vectors.gate_rank:  # the gate may choose any expert
                return None
            vectors = vectors.experts
        return vectors.get(task or "", TaskVector({})).digest

    @contextlib.contextmanager
    def applied(self, backbone: Backbone, task: str | None = None) -> Iterator[Choice]:
        """Temporarily apply the combination to the backbone.

        On exit from the `with` block, the backbone is restored bit for bit. If the task
        posterior picks a task for each sample, either `task` applies to all samples, or,
        without it, the yielded `Choice` must be given the tasks of each batch.
        """
        model = backbone.model
        if isinstance(self.vectors, Mixture):
            mixture = self.vectors
            if self.picks and task is not None:
                # The result then does not depend on the other experts, not even in rounding.
                mixture = mixture.only(task)
            with adapters.disabled(model), mixture.inserted(model) as choice:
                choice.of([task])
                yield choice
            return

        vector = self.vectors
        if isinstance(vector, dict):
            # A task without a vector has not been learned yet.
            vector = vector.get(task or "")  # (no task has an empty name)
        if vector is not None and self.origin is not None:
            with _adapted(model, self.origin, vector):
                yield Choice()
        else:
            vector = vector or TaskVector({})
            with adapters.disabled(model), folded(model, vector):
                yield Choice()


@contextlib.contextmanager
def folded(model: nn.Module, vector: TaskVector) -> Iterator[None]:
    """Temporarily add a delta-space task vector to the weights of a model."""
    changes = {name: vector.dense(name) for name in vector.entries}
    with adapters.folded(model, changes):
        yield


@contextlib.contextmanager
def _adapted(model: nn.Module, origin: Adapter, vector: TaskVector) -> Iterator[None]:
    """Temporarily set the parameters of an adapter to its start values plus `vector`."""
    # The model may already have an adapter, such as the one for the task being learned.
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
    """Apply a rule to the adapters of several tasks, given in the order they were learned.

    Parameters
    ----------
    rule
        A `Rule`, the name of a rule, or a mapping with `name` and settings.

    Raises
    ------
    UnknownName
        There is no such rule.
    InputError
        The scale of the rule is still `search`, and has not been replaced by a number.
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
        # The combination is applied many times, so compute the rule's deferred entries now.
        merged = merged.made()
    return Combined(
        merged,
        origin=learned[0] if rule.space == "factor" else None,
        label=rule.label,
    )
