"""A finished run as one model, which can make predictions or be exported."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from perdure import registry
from perdure.data.images import as_rows
from perdure.data.rows import Row, texts
from perdure.data.task import TaskRows, TaskStream
from perdure.errors import DataError, InputError, RunError, UnknownName
from perdure.evaluation.posterior import describe
from perdure.evaluation.score import by_task, probabilities, settled, task_logits
from perdure.learning import engine
from perdure.merging.rule_settings import Rule, RuleLike
from perdure.models.examples import BATCH_SIZE, Examples
from perdure.models.language import LanguageModel
from perdure.runs import backbones
from perdure.runs.answers import Answer, Answerer
from perdure.runs.export import Form
from perdure.runs.export_heads import Heads
from perdure.runs.export_run import Request, exported
from perdure.runs.folder import Run
from perdure.runs.inputs import Asked, input_columns, prompt_reader, prompts, texts_or_pairs
from perdure.runs.layout import reading
from perdure.runs.prediction import Prediction, Withheld
from perdure.runs.recipe import Recipe
from perdure.runs.resume import restored
from perdure.runs.sources import Sources
from perdure.runs.state import RunState, read

CLASSIFIED = ("label", "probability", "task")
"""The columns that the predictions of a classifier add to a table."""
ANSWERED = ("answer", "score", "task")
"""The columns that the answers of a language model add to a table."""


class Model:
    """The combined model of a run, with its task posterior.

    Parameters
    ----------
    folder
        The run folder.
    rule
        The rule that combines the adapters: a `Rule`, its name, or a mapping of `name`
        and settings. By default, it is the rule of the run, with the scale that the run
        has found.
    label
        The rule's name in `scores.csv`, if it differs from the rule's own label, as after a search.
    trust
        Allow running Python files that the run's recipe names.
    device
        The device on which the model computes, such as `cpu` or `cuda:1`; `auto` is this
        machine's accelerator if there is one, otherwise the CPU. With `auto`, several
        processes shard the weights if they did so in training.

    Raises
    ------
    RunError
        The folder is not a run, is damaged, or has no finished task yet.
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
        # Recorded before anything is read, so that `export` notices if a task is forgotten later.
        self.sources = Sources.of(folder)
        self.state = read(folder, trust=trust)
        if rule is None:
            self.rule = _rule(self.state)
            usual = self.state.combined["label"]
        else:
            self.rule = Rule.of(rule)
            usual = self.rule.label
        self.label = label or usual
        if not self.state.tasks:
            raise RunError(
                f"`{self.state.folder}` has no combined model yet: no task has been finished."
            )
        path = self.state.folder / "recipe.yaml"
        section = self.state.recipe["backbone"]
        with reading(path):
            backbones.check(section, f"`{path}`: backbone")
        self.backbone = backbones.make(section)
        self._place(device)
        self.system = restored(self.state, self.backbone, self.rule)
        self.classes = self.system.classes
        self.combined = self.system.combined

    def _place(self, device: str) -> None:
        """Move the backbone to its device; several processes share it as they did in training."""
        if device == "auto" and engine.count() > 1:
            engine.place(self.backbone, Recipe.parse(self.state.recipe).make_training())
        else:
            self.backbone.to(engine.device(device))

    # -- predict

    @property
    def made(self) -> tuple[str, ...]:
        """The names of the columns that predictions add to a table."""
        return ANSWERED if self.backbone.writes else CLASSIFIED

    def predict(
        self,
        inputs: Sequence[object],
        *,
        task: str | None = None,
        batch_size: int = BATCH_SIZE,
        unknown: float | None = None,
        min_probability: float | None = None,
    ) -> list[Prediction] | list[Answer]:
        """Classify texts, pairs of texts, or images; with a language model, answer prompts.

        Several processes, all of which must ask the same, compute a share of the answers each.

        A text without any tokens gets the class with the largest share of the training
        examples, with all tasks weighted equally.

        Parameters
        ----------
        inputs
            The inputs, all of one kind. A pair is a tuple of two texts. An image is a
            Pillow image, an array that Pillow accepts, a path, or the bytes of a file.
            The pixels of an image in memory are read at the time of the call, and rotated
            according to its EXIF orientation. A prompt is a text, or a conversation: a
            list of turns, each with its `role` and `content`.
        task
            The task of all inputs, if it is known; by default, the task posterior weights
            the tasks.
        batch_size
            The number of inputs that the model reads at a time.
        unknown
            The share of known inputs, such as 0.05, that may get the label `unknown`, with
            the probability of being unknown and without a task. An input gets it if it is
            as far from the classes of its task as the farthest of that task's validation
            examples. It needs `posterior: {temperature: fitted}`.
        min_probability
            The lowest probability with which a class is given; below it, the label is empty.

        Raises
        ------
        UnknownName
            The run has not learned this task.
        InputError
            There are no inputs, they are of several kinds, or an image cannot be read; or
            answers are to be withheld, but the model is a language model, a threshold is
            not between 0 and 1, or a task has too few validation examples.
        RunError
            The run has stored nothing by which it could tell unknown inputs.
        NotFinite
            The rule produces a model whose outputs are not finite.
        """
        if task is not None and task not in self.classes:
            raise UnknownName("task", task, self.classes)
        if not len(inputs):
            raise InputError("There is nothing to predict: the input has no rows.")
        withheld = Withheld(unknown, min_probability)
        withheld.check(self.system)
        if isinstance(self.backbone, LanguageModel):
            answerer = Answerer(self.system, self.backbone, task)
            return answerer.answers(TaskRows(task or "", prompts(inputs)), batch_size)
        rows = as_rows(inputs) if self.backbone.kind == "image" else texts_or_pairs(inputs)
        examples = self.backbone.prepare(
            [TaskRows(task or "", rows)], batch_size=batch_size, allow_empty=True
        )
        names = [task] if task else list(self.classes)
        choices = {name: self.classes[name] for name in names}
        log_weights = self._log_weights(examples, task)
        logits = task_logits(self.backbone, self.combined, examples, choices, log_weights)
        # The model has read a placeholder instead of these texts, so its answer is meaningless.
        for row in examples.without_tokens:
            log_weights[row] = -math.log(len(names))
            for name in names:
                logits[name][row] = self._log_prior(name)
        answers = self._likeliest(names, logits, log_weights)
        shares = [1.0] * len(answers)
        if unknown is not None:
            shares = self._shares(examples, names, log_weights)
        return [answer.but(withheld, share) for answer, share in zip(answers, shares, strict=True)]

    def _shares(
        self,
        examples: Examples,
        names: Sequence[str],
        log_weights: Float[Tensor, "examples tasks"],
    ) -> list[float]:
        """Return the share of known inputs that are as far from the classes as each example."""
        places = torch.tensor([self.system.tasks.index(name) for name in names])
        picked = places[log_weights.argmax(1)]
        shares = self.system.known.shares(describe(self.backbone, examples), picked)
        # The model has read a placeholder instead of these texts.
        shares[examples.without_tokens] = 1.0
        return shares.tolist()

    def _log_weights(self, examples: Examples, task: str | None) -> Float[Tensor, "examples tasks"]:
        """Return log p(t | x) for each example and task; zeros if the task is known."""
        if task:
            log_weights = torch.zeros(len(examples), 1)
        else:
            log_weights = self.system.posterior.log_prob(describe(self.backbone, examples))
        # Such a rule uses one task's adapter for each example, and only that task's answer counts.
        return settled(log_weights) if self.combined.picks else log_weights

    def _likeliest(
        self,
        names: Sequence[str],
        logits: Mapping[str, Float[Tensor, "examples _"]],
        log_weights: Float[Tensor, "examples tasks"],
    ) -> list[Prediction]:
        """Return the most likely class of each example, over the classes of all the given tasks."""
        # A class that several tasks share is one column of the probabilities.
        columns: dict[str, int] = {}
        for name in names:
            for label in self.classes[name]:
                columns.setdefault(label, len(columns))
        places = []
        for name in names:
            places.append([columns[label] for label in self.classes[name]])
        best = probabilities(logits, places, log_weights).max(1)
        # Such a class is attributed to the task that contributes most to its probability here.
        tasks = _likeliest_task(by_task(logits, log_weights), places, best.indices)
        labels = list(columns)
        answers = zip(best.indices.tolist(), best.values.tolist(), tasks, strict=True)
        return [
            Prediction(labels[column], probability, names[task])
            for column, probability, task in answers
        ]

    def _log_prior(self, task: str) -> Float[Tensor, " classes"]:
        """Return the logarithm of each class's share of a task's training examples."""
        learned = next(learned for learned in self.system.learned if learned.name == task)
        # The counts were made in training, so no examples are needed now.
        counts = learned.statistics.counts
        return (counts / counts.sum()).log().float()

    def reader(self, columns: Sequence[str], source: str, asked: Asked) -> Callable[[Row], object]:
        """Return a function that makes the model's input from a row of a table.

        Parameters
        ----------
        columns, source
            The columns of the table, and the name of the table in messages.
        asked
            The columns that the user has named.

        Raises
        ------
        DataError, InputError
            The table does not have these columns, or an option does not suit the model.
        """
        stream = self.state.recipe["stream"]
        if self.backbone.writes:
            return prompt_reader(columns, source, asked, stream, self.classes)
        if asked.prompt:
            raise InputError(
                f"`--prompt-template` is for language models, but `{self.backbone.source}` answers "
                f"with classes, by heads. Name its input with `--{self.backbone.kind}`."
            )
        named_columns = [asked.image] if asked.image else list(asked.text)
        inputs = self.input_columns(columns, named_columns, source)
        return lambda row: self.input_of(row, inputs)

    def check_input(self, value: object, where: str) -> bool:
        """Check that an input can be read; return True if it is a prompt that will be truncated.

        Raises
        ------
        DataError
            A prompt has no tokens, or the chat template rejects it.
        """
        if not isinstance(self.backbone, LanguageModel):
            return False
        return self.backbone.prompts.tokens(value, None, where).cut  # pyright: ignore

    def input_columns(
        self, columns: Sequence[str], asked: Sequence[str], source: str
    ) -> tuple[str, ...]:
        """Return the columns of a table that contain the model's input.

        Parameters
        ----------
        columns
            The columns of the table.
        asked
            The columns that the user has named: one, or two for pairs of texts. If empty,
            use the columns from which a task of the run was read, or otherwise `text` or
            `image`.
        source
            The name of the table in messages.

        Raises
        ------
        InputError
            The table does not have these columns.
        """
        kind = self.backbone.kind
        return input_columns(
            columns,
            asked,
            source,
            stream=self.state.recipe["stream"],
            kind=kind,
            option=f"--{kind}",
        )

    def add_predictions(
        self,
        rows: Sequence[dict[str, Any]],
        *,
        column: str | None = None,
        task: str | None = None,
    ) -> list[dict[str, Any]]:
        """Return copies of rows with predictions added.

        The added columns are `label`, `probability` and `task`; for a language model,
        `answer`, `score` and `task`. If a row already has a column of that name, the new
        one is called `predicted_…`.

        Parameters
        ----------
        column
            The column with the text or the image; by default the one on which the run was
            trained, otherwise `text` or `image`.
        task
            The task of all rows, if it is known.
        """
        columns = list(rows[0]) if rows else []
        asked = Asked(text=[column] if column else [], task=task)
        if self.backbone.kind == "image":
            asked = Asked(image=column, task=task)
        read = self.reader(columns, "The table", asked)
        inputs = []
        for number, cells in enumerate(rows, start=1):
            inputs.append(read(Row(number, cells, f"Row {number}")))
        names = names_of_answers(columns, self.made)
        answers = self.predict(inputs, task=task)
        return [cells | answer.named(names) for cells, answer in zip(rows, answers, strict=True)]

    def input_of(self, row: Row, columns: Sequence[str]) -> object:
        """Return the model's input from a row. A text may be empty.

        Raises
        ------
        DataError
            The row has no text, or no image.
        """
        if self.backbone.kind == "text":
            return texts(row, columns, empty=True)
        value = row.cells.get(columns[0])
        if value is None or value == "":
            raise DataError(
                f"{row.where}, has nothing in column `{columns[0]}`. Complete it or leave it out."
            )
        return value

    # -- export

    def export(
        self,
        output: str | Path,
        *,
        form: Form = "model",
        heads: Heads | None = None,
        rank: int | None = None,
        pad_rank: bool = False,
        stream: TaskStream | None = None,
    ) -> Path:
        """Write the combined model for other tools to load, with a model card that describes it.

        A model that answers by heads is written with one head for the classes of all tasks.
        With `pooling: stock`, the folder is for `AutoModelFor…Classification`; with `mean`,
        it is for `SentenceTransformer`, whose output is then the logits. A language model
        is written for `AutoModelForCausalLM` or `AutoModelForSeq2SeqLM`, with greedy
        decoding.

        Parameters
        ----------
        form
            `model` for a stock checkpoint; `adapter` for one PEFT LoRA adapter of the
            base model, which must be a language model.
        heads
            `closed_form`: compute the head from the statistics of the task posterior,
            carried over to the combined model, because a stock model has no posterior.
            `joined`: join the heads of the tasks. By default, `closed_form` for models
            whose tasks were trained with separate heads.
        rank
            The rank to which the adapter is truncated; by default, nothing is truncated.
        pad_rank
            If True, pad the adapter with zeros to a rank that vLLM supports.
        stream
            The tasks on whose test examples the exported model is measured, if they cannot
            be created from the run's recipe.

        Raises
        ------
        RunError
            The model has no single set of weights, because its rule is routed or combines
            in factor space; its weights are in 4 bits; a head is not linear in the
            features; or the backbone is a network that was trained from scratch.
        InputError
            The combined change does not fit into an adapter; or no head can be computed in
            closed form, but `heads` asks for one.
        """
        request = Request(
            output=Path(output),
            form=form,
            heads=heads,
            rank=rank,
            pad_rank=pad_rank,
            stream=stream,
        )
        exported(self.system, self.state, self.label, request, check=self.sources.check)
        return request.output


def names_of_answers(columns: Sequence[str], made: Iterable[str] = CLASSIFIED) -> dict[str, str]:
    """Return a column name for each part of a prediction, avoiding the table's own columns.

    Examples
    --------
    >>> names_of_answers(["text", "label"])
    {'label': 'predicted_label', 'probability': 'probability', 'task': 'task'}
    """
    names: dict[str, str] = {}
    for key in made:
        name = key
        # Repeated, because a table of earlier predictions may also have `predicted_label`.
        while name in columns:
            name = f"predicted_{name}"
        names[key] = name
    return names


def _rule(state: RunState) -> Rule:
    """Return the rule with which a run last combined its adapters."""
    combined = state.combined
    path = state.folder / "combined.json"
    in_recipe = state.recipe["rule"]["name"]
    # Only the recipe decides which code is run: the user has trusted that file, not this one.
    if combined["name"].endswith(".py") and combined["name"] != in_recipe:
        raise RunError(
            f"`{path}` names the rule `{combined['name']}`, but the recipe `{in_recipe}`."
        )
    registry.find("rule", combined["name"])
    with reading(path):
        applied = {key: combined[key] for key in ("name", "space", "since")}
        rule = Rule.of(combined["options"] | applied, f"`{path}`")
        scales = rule.options.get("scale")
        missing = []
        if isinstance(scales, dict):
            missing = [name for name in state.tasks if name not in scales]
        if missing:
            raise RunError(
                f"`{path}` has no scale for the task `{missing[0]}`: no search has found one yet. "
                f"Continue with `perdure run {state.folder}`, or measure with "
                f"`perdure evaluate {state.folder}`."
            )
    return rule


def _likeliest_task(
    probabilities_by_task: Sequence[Float[Tensor, "examples _"]],
    places: Sequence[Sequence[int]],
    chosen: Int[Tensor, " examples"],
) -> list[int]:
    """Return, for each example, the task that contributes most to the chosen class."""
    shares = []
    for probability, columns in zip(probabilities_by_task, places, strict=True):
        # True at the chosen class, if the task has that class.
        is_chosen = torch.tensor(columns) == chosen[:, None]
        shares.append((probability * is_chosen).sum(1))
    return torch.stack(shares).argmax(0).tolist()
