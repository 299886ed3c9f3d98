"""A finished run as one model: predict with it, or export it as a stock checkpoint."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from jaxtyping import Float, Int
from torch import Tensor

from perdure import registry
from perdure.data.examples import TEXTS
from perdure.data.images import as_rows
from perdure.data.rows import HALF, Row, half_of_a_pair, texts
from perdure.errors import DataError, InputError, NotFinite, RunError, UnknownName
from perdure.evaluation.posterior import describe
from perdure.evaluation.score import by_task, probabilities, settled, task_logits
from perdure.learning import engine
from perdure.merging.rule_settings import Rule, RuleLike
from perdure.models import adapters
from perdure.models.backbone import Backbone
from perdure.models.examples import BATCH_SIZE
from perdure.runs.export_card import Exported, card
from perdure.runs.folder import Run
from perdure.runs.layout import reading
from perdure.runs.resume import restored
from perdure.runs.sources import Sources
from perdure.runs.state import RunState, read
from perdure.settings import checked, named
from perdure.storage import files, staging


@dataclass(frozen=True)
class Prediction:
    """The class that is most likely, its probability, and the task that it belongs to."""

    label: str
    probability: float
    task: str

    def named(self, names: Mapping[str, str]) -> dict[str, Any]:
        """Return the answer as cells of a row, under these names."""
        return {name: getattr(self, key) for key, name in names.items()}


class Model:
    """The combined model of a run, with its task posterior.

    Parameters
    ----------
    folder
        The run folder.
    rule
        How the adapters are combined, as a `Rule`, its name, or a mapping of `name` and settings; by default as the
        run did, with the scale that it found.
    label
        What the rule is called in `scores.csv`, if that is not its own label, as after a search.
    trust
        Whether Python files that the run's recipe names may be run.
    device
        Where the model computes, such as `cpu` or `cuda:1`; `auto` is the accelerator that is here, else the CPU.

    Raises
    ------
    RunError
        The folder is no run, is damaged, or holds no task yet.
    InputError
        There is no such device.
    """

    def __init__(
        self,
        folder: str | Path | Run,
        *,
        rule: RuleLike | None = None,
        label: str | None = None,
        trust: bool = False,
        device: str = "auto",
    ):
        folder = folder.folder if isinstance(folder, Run) else Path(folder)
        self.sources = Sources.of(folder)  # before anything is read that may be forgotten meanwhile
        self.state = read(folder, trust=trust)
        self.rule = _rule(self.state) if rule is None else Rule.of(rule)
        usual = self.state.combined["label"] if rule is None else self.rule.label
        self.label = label or usual
        if not self.state.tasks:
            raise RunError(
                f"`{self.state.folder}` holds no combined model yet: no task was finished."
            )
        with reading(self.state.folder / "recipe.yaml"):
            source, settings = named(self.state.recipe["backbone"], "backbone", key="model")
            settings = checked(
                Backbone.load, settings, f"`{self.state.folder / 'recipe.yaml'}`: backbone"
            )
        self.backbone = Backbone.load(source, **settings).to(engine.device(device))
        self.system = restored(self.state, self.backbone, self.rule)
        self.classes = self.system.classes
        self.combined = self.system.combined

    def predict(
        self, inputs: Sequence[Any], *, task: str | None = None, batch_size: int = BATCH_SIZE
    ) -> list[Prediction]:
        """Classify texts, pairs of texts, or images.

        A text of which the tokenizer makes no token gets the answer that is likeliest without any: that of
        the classes' shares in training, each task as likely as the others.

        Parameters
        ----------
        inputs
            All of one kind. A pair is a tuple of two texts; an image is an object of Pillow, an array that Pillow
            takes, a path, or the bytes of a file. Of an image in memory the pixels are read as they are now, and
            turned as its EXIF orientation says.
        task
            The task of all inputs, if it is known; by default the task posterior weighs the tasks.
        batch_size
            The number of inputs that the model reads at a time.

        Raises
        ------
        UnknownName
            The run has not learned that task.
        InputError
            There is nothing to classify, the inputs are of several kinds, or an image cannot be read.
        NotFinite
            The rule makes a model whose answers are not finite numbers.
        """
        if task is not None and task not in self.classes:
            raise UnknownName("task", task, self.classes)
        if not len(inputs):
            raise InputError("There is nothing to predict: the input has no rows.")
        rows = as_rows(inputs) if self.backbone.kind == "image" else _texts(inputs)
        examples = self.backbone.prepare(
            [(task or "", rows)], batch_size=batch_size, allow_empty=True
        )
        names = [task] if task else list(self.classes)
        log_weights = (
            torch.zeros(len(examples), 1)
            if task
            else self.system.posterior.log_prob(describe(self.backbone, examples))
        )
        if self.combined.picks:
            log_weights = settled(log_weights)
        logits = task_logits(self.backbone, self.combined, examples, names, log_weights)
        for i in examples.without_tokens:
            log_weights[i] = -math.log(len(names))
            for name in names:
                logits[name][i] = self._log_prior(name)
        labels = tuple(dict.fromkeys(label for name in names for label in self.classes[name]))
        places = [[labels.index(label) for label in self.classes[name]] for name in names]
        best = probabilities(logits, places, log_weights).max(1)
        tasks = _likeliest_task(by_task(logits, log_weights), places, best.indices)
        return [
            Prediction(labels[label], probability, names[number])
            for label, probability, number in zip(
                best.indices.tolist(), best.values.tolist(), tasks, strict=True
            )
        ]

    def input_columns(
        self, columns: Sequence[str], asked: Sequence[str], source: str
    ) -> tuple[str, ...]:
        """Return the columns of a table that hold the input.

        Parameters
        ----------
        columns
            Those of the table.
        asked
            Those that the user names, if any: one, or two for pairs of texts. By default those that a task of the run
            was read from, else the one that is called as what it holds.
        source
            The table, for errors.

        Raises
        ------
        InputError
            The table has no such columns.
        """
        kind = self.backbone.kind
        candidates = (
            [tuple(asked)] if asked else [*_read_before(self.state.recipe["stream"], kind), (kind,)]
        )
        for candidate in candidates:
            if set(candidate) <= set(columns):
                return candidate
        missing = next(name for name in candidates[-1] if name not in columns)
        raise InputError(
            f"{source} has no column `{missing}`. Its columns: {list(columns)}. Name the one that holds the input with "
            f"`--{kind}`."
        )

    def _log_prior(self, task: str) -> Float[Tensor, " classes"]:
        """Return the logarithm of each class's share of a task's training examples."""
        counts = next(
            learned.statistics.counts for learned in self.system.learned if learned.name == task
        )
        return (counts / counts.sum()).log().float()

    def add_predictions(
        self, rows: Sequence[dict[str, Any]], *, column: str | None = None, task: str | None = None
    ) -> list[dict[str, Any]]:
        """Rows with `label`, `probability` and `task` added (as `predicted_…` where they have such a column already).

        `column` holds the text, or the image; by default the one that the run was trained on, or `text`.
        """
        columns = self.input_columns(
            list(rows[0]) if rows else [], [column] if column else [], "The table"
        )
        read = [Row(number, row, f"Row {number}") for number, row in enumerate(rows, start=1)]
        inputs = [self.input_of(row, columns) for row in read]
        names = names_of_answers(list(rows[0]))
        answers = self.predict(inputs, task=task)
        return [row | answer.named(names) for row, answer in zip(rows, answers, strict=True)]

    def input_of(self, row: Row, columns: Sequence[str]) -> Any:
        """Return what the model reads of a row. A text may be empty.

        Raises
        ------
        DataError
            It has no text, or no image.
        """
        if self.backbone.kind == "text":
            return texts(row, columns, empty=True)
        value = row.cells.get(columns[0])
        if value is None or value == "":
            raise DataError(
                f"{row.where}, has nothing in column `{columns[0]}`. Complete it or leave it out."
            )
        return value

    def export(self, output: str | Path) -> Path:
        """Write a stock checkpoint: combined weights, all heads as one, `id2label`.

        With `pooling: stock` it is a folder for `AutoModelFor…Classification`, with `mean` one for
        `SentenceTransformer`, whose output is then the logits. The heads are concatenated: a stock model has
        no task posterior. A model card says how well both answer.

        Raises
        ------
        RunError
            The rule is routed, or combines bottleneck adapters: there is no one set of weights. Or the heads are not
            linear in the feature.
        """
        staging.check_free(output := Path(output))
        check_exportable(self.rule)
        adapters.detach(self.backbone.model)
        size = sum(
            value.numel() * value.element_size() for value in self.backbone.model.parameters()
        )
        tasks = list(self.classes)[:1] if self.system.shares_head else list(self.classes)
        with (
            staging.new_folder(output, size=size, check=self.sources.check) as folder,
            self.combined.applied(self.backbone),
        ):
            self._check_finite()
            self.backbone.save(folder, tasks, self._labels())
            files.put(folder / "README.md", card(self.exported(output)))
        return output

    def exported(self, output: str | Path) -> Exported:
        """Return what a folder that `export` writes can do, and how well, as far as it was measured."""
        return Exported(
            name=Path(output).name,
            base=self.backbone.published,
            kind=self.backbone.kind,
            stock=self.backbone.settings["pooling"] == "stock",
            method=self.state.recipe["method"]["name"],
            rule=self.label,
            tasks=self.classes,
            accuracy=self.state.accuracies(self.label),
        )

    def _check_finite(self) -> None:
        for name, value in self.backbone.model.named_parameters():
            if not value.isfinite().all():
                raise NotFinite(
                    f"The rule `{self.rule.label}` makes `{name}` infinite or undefined. Choose other settings, such "
                    "as a `scale` nearer to 1, or another rule."
                )

    def _labels(self) -> list[str]:
        """The name of each output; with its task where several tasks have it."""
        if self.system.shares_head:
            return list(next(iter(self.classes.values())))
        every = [label for classes in self.classes.values() for label in classes]
        return [
            label if every.count(label) == 1 else f"{task}/{label}"
            for task, classes in self.classes.items()
            for label in classes
        ]


def names_of_answers(columns: Sequence[str]) -> dict[str, str]:
    """Return the names of the columns that predictions add, by what they hold; none is among those that are there.

    Examples
    --------
    >>> names_of_answers(["text", "label"])
    {'label': 'predicted_label', 'probability': 'probability', 'task': 'task'}
    """
    names: dict[str, str] = {}
    for field in dataclasses.fields(Prediction):
        name = field.name
        while name in columns:
            name = f"predicted_{name}"
        names[field.name] = name
    return names


def _read_before(stream: Any, kind: str) -> list[tuple[str, ...]]:
    """Return the columns that the tasks of a run's own tables were read from."""
    entries = stream if isinstance(stream, list) else []
    columns = []
    for entry in entries:
        named_columns = entry.get(kind)
        if isinstance(named_columns, str):
            columns.append((named_columns,))
        elif isinstance(named_columns, list):
            columns.append(tuple(named_columns))
    return columns


def _rule(state: RunState) -> Rule:
    """How a run combined its adapters last."""
    combined, path = state.combined, state.folder / "combined.json"
    recipes = state.recipe["rule"]["name"]
    if (
        combined["name"].endswith(".py") and combined["name"] != recipes
    ):  # only the recipe says which code is run
        raise RunError(f"`{path}` names the rule `{combined['name']}`, but the recipe `{recipes}`.")
    registry.find("rule", combined["name"])
    with reading(path):
        applied = {key: combined[key] for key in ("name", "space", "since")}
        rule = Rule.of(combined["options"] | applied, f"`{path}`")
        scales = rule.options.get("scale")
        if missing := [
            name for name in state.tasks if isinstance(scales, dict) and name not in scales
        ]:
            raise RunError(
                f"`{path}` has no scale for the task `{missing[0]}`: it is not searched yet. Go on with "
                f"`perdure run {state.folder}`, or measure with `perdure evaluate {state.folder}`."
            )
    return rule


def check_exportable(rule: Rule) -> None:
    """Whether what a rule makes is one set of weights.

    Raises
    ------
    RunError
        It is routed, or combines in factor space.
    """
    if rule.routed or rule.space == "factor":
        why = "is routed" if rule.routed else "combines in factor space"
        raise RunError(
            f"The rule `{rule.label}` {why}, so there is no one set of weights to export. Choose another with "
            "`--rule`, such as `task_arithmetic` in delta space."
        )


def _likeliest_task(
    parts: Sequence[Float[Tensor, "examples _"]],
    places: Sequence[Sequence[int]],
    chosen: Int[Tensor, " examples"],
) -> list[int]:
    """For each example the task from which most of the probability of the chosen class comes."""
    shares = []
    for part, place in zip(parts, places, strict=True):
        own = (
            torch.tensor(place) == chosen[:, None]
        )  # where the chosen class is among the task's own
        shares.append((part * own).sum(1))
    return torch.stack(shares).argmax(0).tolist()


def _texts(inputs: Sequence[Any]) -> Dataset:
    """Return texts, or pairs of texts, as rows that the backbone reads.

    Raises
    ------
    InputError
        Some are no texts, or not all are of one kind.
    """
    pairs = [isinstance(value, tuple | list) and len(value) == 2 for value in inputs]
    texts = [tuple(value) if pair else (value,) for value, pair in zip(inputs, pairs, strict=True)]
    size = len(texts[0])
    for number, parts in enumerate(texts, start=1):
        if not all(isinstance(part, str) for part in parts):
            raise InputError(
                f"Input {number} is {inputs[number - 1]!r}, but should be a text or a pair of texts."
            )
        if half := half_of_a_pair("".join(parts)):
            raise InputError(f"Input {number} has `{half}`: {HALF}")
        if len(parts) != size:
            raise InputError(
                f"Input {number} is a {'pair' if size == 1 else 'single text'}, unlike the first one."
            )
    return Dataset.from_dict(
        {name: [parts[i] for parts in texts] for i, name in enumerate(TEXTS[:size])}
    )
