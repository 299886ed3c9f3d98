"""What a run is diagnosed on: its model at each step, and examples of its tasks."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor

from perdure import registry
from perdure.analysis.hidden import hidden_states
from perdure.data.task import Split, TaskStream
from perdure.errors import RunError
from perdure.evaluation.measure import check_search
from perdure.evaluation.scales import with_best_scale
from perdure.evaluation.score import features
from perdure.evaluation.system import Learned, System
from perdure.merging.combine import Combined
from perdure.merging.rule_settings import Rule
from perdure.models.backbone import Backbone
from perdure.models.examples import Examples
from perdure.runs.recipe import Recipe
from perdure.runs.resume import restored
from perdure.runs.state import RunState
from perdure.settings import checked

EXAMPLES = 100
"""How many of each task and split are read at most."""


@dataclass(frozen=True)
class Subject:
    """A run with all that it is diagnosed with; `stream` is of the tasks that it has learned."""

    run: RunState
    system: System
    stream: TaskStream
    examples: int
    seed: int
    _tested: dict[int, list[Float[Tensor, "examples width"]]] = field(default_factory=dict)

    @property
    def backbone(self) -> Backbone:
        return self.system.backbone

    @property
    def learned(self) -> tuple[Learned, ...]:
        return self.system.learned

    @property
    def rule(self) -> Rule:
        """The rule as it was asked for, which may have a scale to be searched."""
        return self.system.rule

    @property
    def tasks(self) -> list[str]:
        return self.system.tasks

    @property
    def present(self) -> list[str]:
        """The tasks whose examples are here: what is read of examples is read of these."""
        return [task.name for task in self.stream if not task.missing]

    @property
    def frozen(self) -> bool:
        """Whether the method has left the backbone as it was."""
        return all(task.adapter.config is None for task in self.learned)

    def combined(self, step: int) -> Combined:
        """The model after so many tasks, with the scale that was found then, or is found now; with 0 the pre-trained
        one.
        """
        system = self.system.until(step)
        if not step or not self.rule.searches:
            return system.combined
        found = self.run.found(self.rule.label, step)
        if not found:
            check_search(self.stream, step, self.rule)
            return with_best_scale(system, self.stream)[0].combined
        where = f"`{self.run.folder / 'combined.json'}`: rule `{self.rule.name}`"
        options = checked(registry.find("rule", self.rule.name), found["options"], where)
        return system.with_rule(self.rule.with_options(options)).combined

    def encoded(self, split: Split) -> list[Examples]:
        """The examples of each task that are read."""
        fewer = self.stream.limited(**{split: self.examples}, seed=self.seed)
        return [self.backbone.encode(fewer.task(name).rows(split)) for name in self.present]

    def labels(self, examples: Sequence[Examples]) -> list[Int[Tensor, " examples"]]:
        """Of each task's examples, among the classes of all."""
        index = [self.stream.class_index(name) for name in self.present]
        return [
            torch.tensor(of)[torch.tensor(rows.labels)]
            for of, rows in zip(index, examples, strict=True)
        ]

    def features(
        self, combined: Combined, examples: Sequence[Examples]
    ) -> list[Float[Tensor, "examples width"]]:
        """Of each task's examples; a routed model reads those of a task as that task's."""
        pairs = zip(self.present, examples, strict=True)
        return [features(self.backbone, combined, rows, task=name).cpu() for name, rows in pairs]

    def tested(self, step: int) -> list[Float[Tensor, "examples width"]]:
        """Of each task's test examples, by the model after so many tasks; computed once, for it is what takes time."""
        if step not in self._tested:
            same = self.frozen and step  # nothing of the backbone was ever changed
            self._tested[step] = (
                self.tested(0) if same else self.features(self.combined(step), self.encoded("test"))
            )
        return self._tested[step]

    def hidden(
        self, combined: Combined, examples: Sequence[Examples]
    ) -> list[Float[Tensor, "examples _"]]:
        """The hidden states of each layer, of all tasks' examples one after the other."""
        found = []
        for name, rows in zip(self.present, examples, strict=True):
            with combined.applied(self.backbone, name):
                found.append(hidden_states(self.backbone, rows))
        return [torch.cat(layer) for layer in zip(*found, strict=True)]


def subject_of(
    run: RunState, rule: Rule | None, stream: TaskStream | None, examples: int
) -> Subject:
    """A run with its backbone and tasks, which have to be those that it learned; by default with its own rule.

    `examples` are at most so many of each task and split.

    Raises
    ------
    RunError
        The tasks are others, or it has learned none.
    """
    recipe = Recipe.parse(run.recipe)
    if not run.tasks:
        raise RunError(f"`{run.folder}` has learned no task yet, so there is nothing to diagnose.")
    stream, backbone = stream or recipe.make_stream(run), recipe.make_backbone()
    system = restored(run, backbone, rule or recipe.make_rule(), stream)
    return Subject(run, system, stream.until(len(system.learned)), examples, recipe.seed)
