"""From adapters to one model: task vectors, a rule, and the model as it acts at test time."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from perdure import adapters, registry
from perdure.adapters import Adapter
from perdure.backbone import Backbone
from perdure.errors import InputError
from perdure.mixture import Choice, Mixture
from perdure.rule import takes_inputs
from perdure.search import Search
from perdure.task_vector import LowRank, TaskVector

Space = Literal["delta", "factor"]
Since = Literal["pretrained", "start"]
Inputs = Mapping[str, Mapping[str, Float[Tensor, "in in"]]]


@dataclass(frozen=True, kw_only=True)
class Rule:
    """A rule of `merging/` with its settings, and what it is applied to.

    Parameters
    ----------
    name
        The rule's name.
    options
        Its own settings, such as `scale`.
    space
        `delta`: ΔW = s B A of each layer, which is how LoRA acts, summed exactly; `factor`: the modules' own parameters
        (A and B apart), relative to their common start. Bottleneck adapters have only `factor`. The two differ: the sum
        of factors has the cross terms B_i A_j.
    since
        `pretrained`: a task vector is all that the module adds to the pre-trained model (the paper's tau = Phi -
        Phi_pre); with modules started from the previous task it contains the earlier tasks, which so count several
        times. `start`: only what training on the task itself has added.
    search
        How the scale is searched where it is `search`.
    """

    name: str = "task_arithmetic"
    options: Mapping[str, Any] = field(default_factory=dict)
    space: Space = "delta"
    since: Since = "pretrained"
    search: Search = field(default_factory=Search)

    @property
    def label(self) -> str:
        """The name, and the settings that are not the defaults: what tells it from other rules in `scores.csv`.

        Examples
        --------
        >>> Rule(name="task_arithmetic", options={"scale": 0.3}, space="factor").label
        'task_arithmetic(scale=0.3, space=factor)'
        """
        settings = {**self.options, "space": self.space, "since": self.since}
        if self.searches and self.search.over != "all":
            settings["scale"] = f"search over {self.search.over} by {self.search.by}"
        usual = {"space": "delta", "since": "pretrained"}
        own = [f"{name}={value}" for name, value in settings.items() if usual.get(name) != value]
        return f"{self.name}({', '.join(own)})" if own else self.name

    def with_scale(self, scale: Any) -> "Rule":
        """The rule with another scale."""
        return replace(self, options={**self.options, "scale": scale})

    def tried(self, *, full: bool = False) -> "Combined":
        """What the rule makes of two small task vectors, low-rank or `full`: whatever is wrong with it shows here.

        Raises
        ------
        PerdureError
            As the rule does.
        """
        if self.search.over != "all" and self.name != "task_arithmetic":
            raise InputError(f"`search.over: {self.search.over}` is for `task_arithmetic`, not for `{self.name}`.")
        if self.searches or isinstance(self.options.get("scale"), Mapping):  # the tasks below have other names
            return self.with_scale(1.0).tried(full=full)
        small = LowRank(torch.ones(2, 1), torch.ones(1, 2)) if self.space == "delta" else torch.ones(2)
        small = torch.ones(2, 2) if full else small
        inputs = {name: {"w": torch.eye(2)} for name in ("a", "b")}
        return Combined(self({name: TaskVector({"w": small}) for name in inputs}, inputs))

    def __call__(
        self, vectors: Mapping[str, TaskVector], inputs: Inputs | None = None
    ) -> TaskVector | dict[str, TaskVector] | Mixture:
        """What the rule makes of task vectors, by task name.

        `inputs` are the kept covariances of the layers' inputs, by task and layer.

        Raises
        ------
        InputError
            The rule needs statistics of inputs, and none were kept.
        """
        function = registry.find("rule", self.name)
        if not takes_inputs(function):
            return function(vectors, **self.options)
        if not inputs:
            raise InputError(
                f"The rule `{self.name}` needs statistics of the layers' inputs, which were not kept: learn the tasks "
                "with `training: {keep_inputs: true}`."
            )
        return function(vectors, inputs, **self.options)

    @property
    def needs_inputs(self) -> bool:
        """Whether it takes statistics of the layers' inputs."""
        return takes_inputs(registry.find("rule", self.name))

    @property
    def searches(self) -> bool:
        """Whether its scale is to be searched on validation data."""
        return self.options.get("scale") == "search"


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
    return TaskVector({name: LowRank(*value) if isinstance(value, tuple) else value for name, value in found.items()})


def _changes(parameters: adapters.Parameters) -> bool:
    """Whether parameters change the model: a fresh LoRA has B = 0, a fresh full module nothing but zeros."""
    return any(value.any() for name, value in parameters.items() if ".lora_A." not in name)


def _factor_vectors(learned: Sequence[Adapter], since: Since) -> dict[str, TaskVector]:
    origin = learned[0].start
    vectors = {}
    for adapter in learned:
        before = adapter.start if since == "start" else origin
        shapes = {k: v.shape for k, v in adapter.parameters.items()}
        if shapes != {k: v.shape for k, v in origin.items()} or adapters.scale(adapter) != adapters.scale(learned[0]):
            raise InputError(f"The adapter of `{adapter.name}` has another shape or scale; use `space: delta`.")
        vectors[adapter.name] = TaskVector({k: v - before[k] for k, v in adapter.parameters.items()})
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
            with adapters.disabled(backbone.model), folded(backbone.model, vector or TaskVector({})):
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
        adapters.write(model, {name: origin.start[name] + vector.dense(name) for name in origin.start})
        yield
    finally:
        if before is None:
            adapters.detach(model)
        else:
            adapters.write(model, before)


def combine(learned: Sequence[Adapter], rule: Rule) -> Combined:
    """Apply a rule to the adapters of the tasks, in the order in which they were learned.

    Raises
    ------
    UnknownName
        There is no such rule.
    InputError
        The rule's scale is still `search`.
    """
    if rule.searches:
        raise InputError("`scale: search` needs validation data; give a number, `1/n` or `1/sqrt(n)` here.")
    inputs = {adapter.name: adapter.inputs for adapter in learned if adapter.inputs}
    merged = rule(task_vectors(learned, space=rule.space, since=rule.since), inputs)
    merged = merged.made() if isinstance(merged, TaskVector) else merged  # it will be applied many times
    return Combined(merged, learned[0] if rule.space == "factor" else None, rule.label)
