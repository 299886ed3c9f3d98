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
    """Check by its declaration that a rule can combine adapters of a kind.

    Raises
    ------
    InputError
        It cannot, or declares a return type that no rule may have.
    """
    if module == "bottleneck" and rule.space == "delta":
        raise InputError("`peft: bottleneck` has no ΔW: give the rule `space: factor`.")
    is_full = module == "full" or rule.space == "factor"
    if rule.nature.low_rank and is_full:
        given = f"`peft: {module}`"
        if rule.space == "factor":
            given = f"`space: {rule.space}` of {given}"
        raise InputError(
            f"The rule `{rule.name}` combines low-rank changes, and a change by {given} "
            "is not low-rank: use LoRA in `space: delta`."
        )
    function = registry.find("rule", rule.name)
    _check_returned(rule, _return_type(function))


def _return_type(function: Callable[..., object]) -> type:
    """Return the return type that a rule declares; `TaskVector` if that is allowed."""
    annotation = inspect.signature(function, eval_str=True).return_annotation
    if annotation is None:
        return type(None)
    kind = get_origin(annotation) or annotation
    # What an annotation leaves open (`Any`, a union) is checked when the rule returns; whatever
    # it rules out can be refused before hours of training.
    if (
        kind in (Any, inspect.Signature.empty)
        or not isinstance(kind, type)
        or issubclass(TaskVector, kind)
    ):
        return TaskVector
    return kind


def _check_returned(rule: Rule, kind: type) -> None:
    """Check the type of the value that a rule returns, which may be a user's own."""
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
    """Return the task vector of each adapter, by task name.

    Raises
    ------
    BackboneError
        Bottleneck adapters are combined in delta space.
    InputError
        Adapters of different shapes are combined in factor space.
    """
    if space == "factor":
        return _factor_vectors(learned, since)
    vectors: dict[str, TaskVector] = {}
    for adapter in learned:
        vector = _delta(adapter, adapter.parameters)
        # A difference has twice the rank: none is taken where the start changed nothing.
        if since == "start" and _changes(adapter.start):
            vector = vector - _delta(adapter, adapter.start)
        vectors[adapter.name] = vector
    return vectors


def _delta(adapter: Adapter, parameters: adapters.Parameters) -> TaskVector:
    """Return each layer's ΔW, as factors if the adapter is low-rank."""
    entries: dict[str, Entry] = {}
    for name, change in adapters.deltas(adapter.config, parameters).items():
        if isinstance(change, tuple):
            B, A = change
            entries[name] = LowRank(B, A)
        else:
            entries[name] = change
    return TaskVector(entries)


def _changes(parameters: adapters.Parameters) -> bool:
    """Return whether parameters change the model."""
    # A fresh LoRA has B = 0 and a random A; a fresh full module has only zeros.
    others = [value for name, value in parameters.items() if ".lora_A." not in name]
    return any(value.any() for value in others)


def _factor_vectors(learned: Sequence[Adapter], since: Since) -> dict[str, TaskVector]:
    """Return the task vectors of the adapters' own parameters."""
    # Factors can only be subtracted and averaged where they have one shape; their product B A
    # also needs one scale.
    first = learned[0]
    scale = adapters.scale(first)
    shapes = _shapes(first.start)
    vectors: dict[str, TaskVector] = {}
    for adapter in learned:
        fits = _shapes(adapter.parameters) == shapes and adapters.scale(adapter) == scale
        if not fits:
            raise InputError(
                f"The adapter of `{adapter.name}` has another shape or scale; use `space: delta`."
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
    """The result of a rule: a task vector, one for each task, or a mixture of experts.

    Attributes
    ----------
    origin
        In factor space the adapter whose start the vectors are relative to; otherwise None.
    label
        The label of the rule.
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
        """Put the combination into the backbone while a block runs.

        Afterwards the backbone is as before, bit for bit. If the posterior picks, `task` is used
        for all samples until the `Choice` gets the tasks of the next batch.
        """
        model = backbone.model
        if isinstance(self.vectors, Mixture):
            with adapters.disabled(model), self.vectors.inserted(model) as choice:
                choice.of([task])
                yield choice
            return

        vector = self.vectors
        if isinstance(vector, dict):
            # A task without a vector is still to come: the model has learned nothing for it.
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
    """Replace W by W + ΔW for each layer of a vector in delta space, while a block runs."""
    changes = {name: vector.dense(name) for name in vector.entries}
    with adapters.folded(model, changes):
        yield


@contextlib.contextmanager
def _adapted(model: nn.Module, origin: Adapter, vector: TaskVector) -> Iterator[None]:
    """Write Phi_pre + tau into the adapter itself, and put its own parameters back afterwards."""
    # The model may have an adapter attached, such as that of the task that is being learned.
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
    """Apply a rule to the tasks' adapters, in the order of learning.

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
        # The combination is applied many times: entries that the rule deferred are computed here,
        # once, not each time.
        merged = merged.made()
    return Combined(
        merged,
        origin=learned[0] if rule.space == "factor" else None,
        label=rule.label,
    )
