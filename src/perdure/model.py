"""A finished run as one model: predict with it, or export it as a stock checkpoint."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from jaxtyping import Float, Int
from torch import Tensor, nn

from perdure import adapters, registry, staging
from perdure.backbone import Backbone, Encoded
from perdure.errors import InputError, RunError, UnknownName
from perdure.evaluate import by_task, probabilities, settled, task_logits
from perdure.heads import RandomHead
from perdure.images import as_rows
from perdure.merge import Rule, Since, Space, combine
from perdure.restore import restore
from perdure.results import Run
from perdure.rule import chosen
from perdure.run_files import reading
from perdure.settings import checked, named
from perdure.task_id import TaskPosterior, describe
from perdure.task_vector import TaskVector


@dataclass(frozen=True)
class Prediction:
    """The class that is most likely, its probability, and the task that it belongs to."""

    label: str
    probability: float
    task: str


class Model:
    """The combined model of a run, with its task posterior.

    Parameters
    ----------
    folder
        The run folder.
    rule
        How the adapters are combined; by default as the run did, with the scale that it found.
    """

    def __init__(self, folder: str | Path | Run, *, rule: Rule | None = None):
        self.results = folder if isinstance(folder, Run) else Run(folder)
        self.rule = rule or _rule(self.results)
        if not self.results.tasks:
            raise RunError(f"`{self.results.folder}` holds no combined model yet: no task was finished.")
        with reading(self.results.folder / "recipe.yaml"):
            source, settings = named(self.results.recipe["backbone"], "backbone", key="model")
            settings = checked(Backbone.load, settings, f"`{self.results.folder / 'recipe.yaml'}`: backbone")
        self.backbone = Backbone.load(source, **settings)
        self.learned = restore(self.results, self.backbone)
        self.classes = {task.name: task.classes for task in self.learned}
        self.combined = combine([task.adapter for task in self.learned], self.rule)
        self.posterior = TaskPosterior({task.name: task.statistics for task in self.learned})

    def predict(self, inputs: Sequence[Any], *, task: str | None = None) -> list[Prediction]:
        """Classify texts or images.

        Parameters
        ----------
        inputs
            Texts; or images, each as an object of Pillow, an array that Pillow takes, a path, or the bytes of
            a file. Of an image in memory the pixels are read as they are now, and turned as its EXIF
            orientation says.
        task
            The task of all inputs, if it is known; by default the task posterior weighs the tasks.

        Raises
        ------
        UnknownName
            The run has not learned that task.
        InputError
            There is nothing to classify, or an image cannot be read.
        """
        if task is not None and task not in self.classes:
            raise UnknownName("task", task, self.classes)
        if not len(inputs):
            raise InputError("There is nothing to predict: the input has no rows.")
        rows = as_rows(inputs) if self.backbone.kind == "image" else Dataset.from_dict({"text": list(inputs)})
        examples = Encoded(self.backbone, [(task or "", rows)])
        names = [task] if task else list(self.classes)
        log_weights = (
            torch.zeros(len(examples), 1) if task else self.posterior.log_prob(describe(self.backbone, examples))
        )
        if self.combined.picks:
            log_weights = settled(log_weights)
        logits = task_logits(self.backbone, self.combined, examples, names, log_weights)
        labels = tuple(dict.fromkeys(label for name in names for label in self.classes[name]))
        places = [[labels.index(label) for label in self.classes[name]] for name in names]
        best = probabilities(logits, places, log_weights).max(1)
        tasks = _likeliest_task(by_task(logits, log_weights), places, best.indices)
        return [
            Prediction(labels[label], probability, names[number])
            for label, probability, number in zip(best.indices.tolist(), best.values.tolist(), tasks, strict=True)
        ]

    def add_predictions(
        self, rows: Sequence[dict[str, Any]], *, column: str | None = None, task: str | None = None
    ) -> list[dict[str, Any]]:
        """Rows with `label`, `probability` and `task` added (as `predicted_…` where they have such a column already).

        `column` holds the text, or the path of the image; by default the one that the run was trained on, or `text`.
        """
        kind = self.backbone.kind
        entries = self.results.recipe["stream"]
        used = [entry.get(kind) for entry in entries] if isinstance(entries, list) else []
        names = list(rows[0]) if rows else []
        found = next((name for name in [column, *used, kind] if name in names), None)
        if found is None or (column and found != column):
            raise InputError(f"No column `{column or kind}`. The table's columns: {names}.")
        values = [_text(row.get(found), number, found) for number, row in enumerate(rows, start=1)]
        title = {key: key for key in ("label", "probability", "task")}
        while set(title.values()) & set(names):
            title = {key: f"predicted_{name}" if name in names else name for key, name in title.items()}
        return [
            row | {title[key]: value for key, value in dataclasses.asdict(prediction).items()}
            for row, prediction in zip(rows, self.predict(values, task=task), strict=True)
        ]

    def export(self, output: str | Path) -> Path:
        """Write a stock checkpoint: combined weights, all heads as one, `id2label`.

        With `pooling: stock` it is a folder for `AutoModelFor…Classification`, with `mean` one for
        `SentenceTransformer`, whose output is then the logits. The heads are concatenated: a stock model has
        no task posterior.

        Raises
        ------
        RunError
            The rule is routed, or combines bottleneck adapters: there is no one set of weights. Or the heads are not
            linear in the feature.
        """
        staging.check_free(output := Path(output))
        check_exportable(self.rule)
        adapters.detach(self.backbone.model)
        size = sum(value.numel() * value.element_size() for value in self.backbone.model.parameters())
        head = self._joined_head()
        with staging.new_folder(output, size=size) as folder, self.combined.applied(self.backbone):
            self.backbone.save(folder, head, self._labels())
        return output

    def _joined_head(self) -> nn.Linear:
        heads = [self.backbone.head(name) for name in self.classes]
        if any(isinstance(head, RandomHead) for head in heads):
            raise RunError(
                "The heads are linear in random features of the model's feature, which no stock model computes. "
                "`perdure predict` does; a method whose heads are linear, such as `lda`, can be exported."
            )
        weight = torch.cat([head.weight for head in heads]).detach()
        joined = nn.Linear(weight.shape[1], weight.shape[0], device=weight.device)
        joined.load_state_dict({"weight": weight, "bias": torch.cat([head.bias for head in heads]).detach()})
        return joined

    def _labels(self) -> list[str]:
        """The name of each output; with its task where several tasks have it."""
        every = [label for classes in self.classes.values() for label in classes]
        return [
            label if every.count(label) == 1 else f"{task}/{label}"
            for task, classes in self.classes.items()
            for label in classes
        ]


def _rule(results: Run) -> Rule:
    """How a run combined its adapters last."""
    combined, path = results.combined(), results.folder / "combined.json"
    recipes = results.recipe["rule"]["name"]
    if combined["name"].endswith(".py") and combined["name"] != recipes:  # only the recipe says which code is run
        raise RunError(f"`{path}` names the rule `{combined['name']}`, but the recipe `{recipes}`.")
    function = registry.find("rule", combined["name"])
    with reading(path):
        chosen("space", combined["space"], Space)
        chosen("since", combined["since"], Since)
        options = checked(function, combined["options"], f"`{path}`: rule `{combined['name']}`")
        scales = options.get("scale")
        if missing := [name for name in results.tasks if isinstance(scales, dict) and name not in scales]:
            raise RunError(
                f"`{path}` has no scale for the task `{missing[0]}`: it is not searched yet. Go on with "
                f"`perdure run {results.folder}`, or measure with `perdure evaluate {results.folder}`."
            )
    return Rule(name=combined["name"], options=options, space=combined["space"], since=combined["since"])


def check_exportable(rule: Rule) -> None:
    """Whether what a rule makes is one set of weights.

    Raises
    ------
    RunError
        It is routed, or combines in factor space.
    """
    routed = not isinstance(rule.tried().vectors, TaskVector)
    if routed or rule.space == "factor":
        why = "is routed" if routed else "combines in factor space"
        raise RunError(
            f"The rule `{rule.label}` {why}, so there is no one set of weights to export. Choose another with "
            "`--rule`, such as `task_arithmetic` in delta space."
        )


def _likeliest_task(
    parts: Sequence[Float[Tensor, "examples _"]], places: Sequence[Sequence[int]], chosen: Int[Tensor, " examples"]
) -> list[int]:
    """For each example the task from which most of the probability of the chosen class comes."""
    shares = []
    for part, place in zip(parts, places, strict=True):
        own = torch.tensor(place) == chosen[:, None]  # where the chosen class is among the task's own
        shares.append((part * own).sum(1))
    return torch.stack(shares).argmax(0).tolist()


def _text(value: Any, number: int, column: str) -> str:
    if not isinstance(value, str):
        raise InputError(f"Row {number} has no text in column `{column}`, but {value!r}. Complete it or leave it out.")
    return value
