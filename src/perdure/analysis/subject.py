"""The run that is diagnosed, with its model after each task, and examples of its tasks."""

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
"""The default for the maximum number of examples that are read per task and split."""


@dataclass(frozen=True)
class Subject:
    """A run with everything that the diagnostics need.

    `stream` contains only the tasks that the run has learned.
    """

    run: RunState
    system: System
    stream: TaskStream
    examples: int
    seed: int
    # A cache of the test features after each step, which several diagnostics need, and
    # which take most of the time.
    _tested: dict[int, list[Float[Tensor, "examples width"]]] = field(default_factory=dict)

    @property
    def backbone(self) -> Backbone:
        return self.system.backbone

    @property
    def learned(self) -> tuple[Learned, ...]:
        return self.system.learned

    @property
    def rule(self) -> Rule:
        """The rule as it was given; its scale may not have been searched for yet."""
        return self.system.rule

    @property
    def tasks(self) -> list[str]:
        return self.system.tasks

    @property
    def present(self) -> list[str]:
        """The names of the tasks whose examples are available.

        Diagnostics that read examples cover only these tasks.
        """
        return [task.name for task in self.stream if not task.missing]

    @property
    def frozen(self) -> bool:
        """True if the method has not changed the backbone."""
        return all(task.adapter.config is None for task in self.learned)

    def combined(self, step: int) -> Combined:
        """Return the model after `step` tasks; step 0 is the pre-trained model.

        If the rule searches for its scale, the one that the run recorded for this step is
        used. If it recorded none, the search takes place now.
        """
        system = self.system.until(step)
        if not step or not self.rule.searches:
            return system.combined
        search = self.run.found(self.rule.label, step)
        if not search:
            # The run used another rule, or did not measure at this step.
            check_search(self.stream, step, self.rule)
            best, _ = with_best_scale(system, self.stream)
            return best.combined
        # The options come from a file, so they are checked like those of a recipe.
        path = self.run.folder / "combined.json"
        where = f"`{path}`: rule `{self.rule.name}`"
        kind = registry.find("rule", self.rule.name)
        options = checked(kind, search["options"], where)
        rule = self.rule.with_options(options)
        return system.with_rule(rule).combined

    def encoded(self, split: Split) -> list[Examples]:
        """Return the encoded examples of a split, at most `examples` for each task in `present`."""
        fewer = self.stream.limited(**{split: self.examples}, seed=self.seed)
        encoded = []
        for name in self.present:
            rows = fewer.task(name).rows(split)
            encoded.append(self.backbone.encode(rows))
        return encoded

    def labels(self, examples: Sequence[Examples]) -> list[Int[Tensor, " examples"]]:
        """Return the labels of each task's examples, as indices into the classes of all tasks."""
        labels = []
        for name, rows in zip(self.present, examples, strict=True):
            class_index = torch.tensor(self.stream.class_index(name))
            own_labels = torch.tensor(rows.labels)
            labels.append(class_index[own_labels])
        return labels

    def features(
        self, combined: Combined, examples: Sequence[Examples]
    ) -> list[Float[Tensor, "examples width"]]:
        """Return the features of each task's examples; a routed model is given their task."""
        by_task = []
        for name, rows in zip(self.present, examples, strict=True):
            of_task = features(
                self.backbone,
                combined,
                rows,
                task=name,
            )
            by_task.append(of_task.cpu())
        return by_task

    def tested(self, step: int) -> list[Float[Tensor, "examples width"]]:
        """Return the features of each task's test examples after `step` tasks, and cache them."""
        if step not in self._tested:
            if self.frozen and step:
                # The backbone never changed, so every step has the features of step 0.
                self._tested[step] = self.tested(0)
            else:
                combined = self.combined(step)
                self._tested[step] = self.features(combined, self.encoded("test"))
        return self._tested[step]

    def hidden(
        self, combined: Combined, examples: Sequence[Examples]
    ) -> list[Float[Tensor, "examples _"]]:
        """Return the hidden states of each layer, concatenated over the examples of all tasks."""
        by_task = []
        for name, rows in zip(self.present, examples, strict=True):
            # A routed model has different weights for each task; they are removed afterwards.
            with combined.applied(self.backbone, name):
                by_task.append(hidden_states(self.backbone, rows))
        return [torch.cat(layer) for layer in zip(*by_task, strict=True)]


def subject_of(
    run: RunState, rule: Rule | None, stream: TaskStream | None, examples: int
) -> Subject:
    """Load the backbone and the tasks of a run, to diagnose it.

    If no rule is given, the run's rule is used; if no stream is given, the run's recipe
    creates it. At most `examples` examples will be read per task and split.

    Raises
    ------
    RunError
        The tasks are not the ones that the run has learned, or it has not learned any.
    """
    recipe = Recipe.parse(run.recipe)
    # Checked before the data and the model are loaded, which may take long.
    if not run.tasks:
        raise RunError(f"`{run.folder}` has learned no task yet, so there is nothing to diagnose.")
    stream = stream or recipe.make_stream(run)
    backbone = recipe.make_backbone()
    rule = rule or recipe.make_rule()
    system = restored(run, backbone, rule, stream)
    # The stream may continue with tasks that the run has not learned yet.
    learned = stream.until(len(system.learned))
    return Subject(
        run=run,
        system=system,
        stream=learned,
        examples=examples,
        seed=recipe.seed,
    )
