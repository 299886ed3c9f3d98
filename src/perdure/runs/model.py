"""A finished run as one model: predict with it, or export it as a stock checkpoint."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from perdure import registry
from perdure.data.images import as_rows
from perdure.data.rows import Row, texts
from perdure.data.task import TaskRows
from perdure.errors import DataError, InputError, RunError, UnknownName
from perdure.evaluation.posterior import describe
from perdure.evaluation.score import by_task, probabilities, settled, task_logits
from perdure.learning import engine
from perdure.merging.rule_settings import Rule, RuleLike
from perdure.models.backbone import Backbone
from perdure.models.examples import BATCH_SIZE, Examples
from perdure.models.language import LanguageModel
from perdure.runs.answers import Answer, Answerer
from perdure.runs.export import Export, Form, check_exportable, write_adapter, write_model
from perdure.runs.export_card import Exported
from perdure.runs.folder import Run
from perdure.runs.inputs import Asked, prompt_reader, prompts, read_before, texts_or_pairs
from perdure.runs.language_card import asking
from perdure.runs.layout import reading
from perdure.runs.resume import restored
from perdure.runs.sources import Sources
from perdure.runs.state import RunState, read
from perdure.settings import checked, named
from perdure.storage import staging

CLASSIFIED = ("label", "probability", "task")
"""The columns that predictions add."""
ANSWERED = ("answer", "score", "task")
"""The columns that the answers of a language model add."""


@dataclass(frozen=True)
class Prediction:
    """The most likely class, its probability, and the task it belongs to."""

    label: str
    probability: float
    task: str

    def named(self, names: Mapping[str, str]) -> dict[str, object]:
        """Return the answer as cells of a row, under these names."""
        return {name: getattr(self, key) for key, name in names.items()}


class Model:
    """The combined model of a run, with its task posterior.

    Parameters
    ----------
    folder
        The run folder.
    rule
        How the adapters are combined, as a `Rule`, its name, or a mapping of `name` and
        settings; by default as the run did, with the scale that it found.
    label
        The rule's name in `scores.csv`, if that is not its own label, as after a search.
    trust
        True if Python files that the run's recipe names may be run.
    device
        Where the model computes, such as `cpu` or `cuda:1`; `auto` is the accelerator of this
        machine if it has one, else the CPU.

    Raises
    ------
    RunError
        The folder is not a run, is damaged, or holds no task yet.
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
        # Noted before anything is read, so that `export` sees if a task was forgotten meanwhile.
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
                f"`{self.state.folder}` holds no combined model yet: no task was finished."
            )
        path = self.state.folder / "recipe.yaml"
        with reading(path):
            source, settings = named(self.state.recipe["backbone"], "backbone", key="model")
            settings = checked(Backbone.load, settings, f"`{path}`: backbone")
        self.backbone = Backbone.load(source, **settings).to(engine.device(device))
        self.system = restored(self.state, self.backbone, self.rule)
        self.classes = self.system.classes
        self.combined = self.system.combined

    # -- predict

    @property
    def made(self) -> tuple[str, ...]:
        """The columns that predictions add to a table."""
        return CLASSIFIED if self.backbone.has_heads else ANSWERED

    def predict(
        self, inputs: Sequence[object], *, task: str | None = None, batch_size: int = BATCH_SIZE
    ) -> list[Prediction] | list[Answer]:
        """Classify texts, pairs of texts, or images; a language model answers prompts.

        A text without any token gets the answer that is most likely a priori: by the classes'
        shares in training, with all tasks equally likely.

        Parameters
        ----------
        inputs
            All of one kind. A pair is a tuple of two texts; an image is an object of Pillow, an
            array that Pillow takes, a path, or the bytes of a file. The pixels of an image in
            memory are read as they are now, and turned as its EXIF orientation says. A prompt is a
            text, or the list of a conversation's turns, each with its `role` and `content`.
        task
            The task of all inputs, if it is known; by default the task posterior weighs the
            tasks.
        batch_size
            The number of inputs that the model reads at a time.

        Raises
        ------
        UnknownName
            The run has not learned that task.
        InputError
            The inputs are empty or of several kinds, or an image cannot be read.
        NotFinite
            The rule makes a model whose answers are not finite numbers.
        """
        if task is not None and task not in self.classes:
            raise UnknownName("task", task, self.classes)
        if not len(inputs):
            raise InputError("There is nothing to predict: the input has no rows.")
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
        # The model has read a placeholder in the place of these texts; its answer means nothing.
        for row in examples.without_tokens:
            log_weights[row] = -math.log(len(names))
            for name in names:
                logits[name][row] = self._log_prior(name)
        return self._likeliest(names, logits, log_weights)

    def _log_weights(self, examples: Examples, task: str | None) -> Float[Tensor, "examples tasks"]:
        """Return log p(t | x) for each example; of a known task alone, zeros."""
        if task:
            log_weights = torch.zeros(len(examples), 1)
        else:
            log_weights = self.system.posterior.log_prob(describe(self.backbone, examples))
        # Such a rule reads each example with the adapter of one task, whose answer alone counts.
        return settled(log_weights) if self.combined.picks else log_weights

    def _likeliest(
        self,
        names: Sequence[str],
        logits: Mapping[str, Float[Tensor, "examples _"]],
        log_weights: Float[Tensor, "examples tasks"],
    ) -> list[Prediction]:
        """Return the most likely class of each example, over the classes of all these tasks."""
        # Tasks may share a class: it is one column of the probabilities.
        columns: dict[str, int] = {}
        for name in names:
            for label in self.classes[name]:
                columns.setdefault(label, len(columns))
        places = []
        for name in names:
            places.append([columns[label] for label in self.classes[name]])
        best = probabilities(logits, places, log_weights).max(1)
        # A class of several tasks is said to belong to the one that makes it most likely here.
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
        # Counted in training, so that no example is needed now.
        counts = learned.statistics.counts
        return (counts / counts.sum()).log().float()

    def reader(self, columns: Sequence[str], source: str, asked: Asked) -> Callable[[Row], object]:
        """Return the function that makes the input of a table's row.

        Parameters
        ----------
        columns, source
            The columns of the table, and the table as messages name it.
        asked
            The columns as the user names them.

        Raises
        ------
        DataError, InputError
            The table has no such columns.
        """
        stream = self.state.recipe["stream"]
        if not self.backbone.has_heads:
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
        """Check that an input can be read; return whether it is a prompt that will be cut.

        Raises
        ------
        DataError
            The tokenizer makes no token of a prompt, or the chat template refuses it.
        """
        if not isinstance(self.backbone, LanguageModel):
            return False
        return self.backbone.prompts.tokens(value, None, where).cut  # pyright: ignore

    def input_columns(
        self, columns: Sequence[str], asked: Sequence[str], source: str
    ) -> tuple[str, ...]:
        """Return the columns of a table that hold the input.

        Parameters
        ----------
        columns
            The columns of the table.
        asked
            The columns that the user names: one, or two for pairs of texts. If empty, those that a
            task of the run was read from, or otherwise `text` or `image`.
        source
            The table, for errors.

        Raises
        ------
        InputError
            The table has no such columns.
        """
        kind = self.backbone.kind
        if asked:
            candidates = [tuple(asked)]
        else:
            candidates = [*read_before(self.state.recipe["stream"], kind), (kind,)]
        # The run's own tables may differ: the first whose columns this one has decides.
        for candidate in candidates:
            if set(candidate) <= set(columns):
                return candidate
        missing = next(name for name in candidates[-1] if name not in columns)
        raise InputError(
            f"{source} has no column `{missing}`. Its columns: {list(columns)}. "
            f"Name the one that holds the input with `--{kind}`."
        )

    def add_predictions(
        self,
        rows: Sequence[dict[str, Any]],
        *,
        column: str | None = None,
        task: str | None = None,
    ) -> list[dict[str, Any]]:
        """Return rows with `label`, `probability` and `task` added, or `answer`, `score`, `task`.

        A column that a row has already is added as `predicted_…`.

        Parameters
        ----------
        column
            The column with the text or the image; by default the one that the run was trained
            on, else `text` or `image`.
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
        """Return the part of a row that the model reads. A text may be empty.

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
        rank: int | None = None,
        pad_rank: bool = False,
    ) -> Path:
        """Write the combined model for others to load, with a model card that says what it can do.

        A model that answers by heads is written with all heads as one, since a stock model has no
        task posterior: with `pooling: stock` it is a folder for `AutoModelFor…Classification`,
        with `mean` one for `SentenceTransformer`, whose output is then the logits. A language model
        is one for `AutoModelForCausalLM` or `AutoModelForSeq2SeqLM`, which answers greedily.

        Parameters
        ----------
        form
            `adapter`: one PEFT LoRA of the base, for a language model.
        rank
            The rank of the adapter's layers; by default exact.
        pad_rank
            Fill the adapter with zeros to a rank that vLLM knows.

        Raises
        ------
        RunError
            The model has no single set of weights, because its rule is routed or combines
            bottleneck adapters; its weights are in 4 bits; or the heads are not linear in the
            feature.
        InputError
            An adapter cannot hold the combination.
        """
        output = Path(output)
        if form == "model" and (rank is not None or pad_rank):
            raise InputError("`--rank` and `--pad-rank` are for `--as adapter`.")
        # Refused here already, before anything is computed; `new_folder` looks again.
        staging.check_free(output)
        check_exportable(self.rule, form, self.backbone.settings.get("dtype"))
        parts = Export(
            system=self.system,
            combined=self.combined,
            output=output,
            about=self.exported(output),
            check=self.sources.check,
        )
        if form == "adapter":
            write_adapter(parts, rank=rank, pad_rank=pad_rank)
        else:
            write_model(parts)
        return output

    def exported(self, output: str | Path) -> Exported:
        """Return what an exported folder can do, and how well, as far as it was measured."""
        return Exported(
            name=Path(output).name,
            base=self.backbone.published,
            kind=self.backbone.kind,
            stock=self.backbone.settings.get("pooling") != "mean",
            method=self.state.recipe["method"]["name"],
            rule=self.label,
            tasks=self.classes,
            accuracy=self.state.accuracies(self.label),
            asking=asking(self.backbone),
        )


def names_of_answers(columns: Sequence[str], made: Iterable[str] = CLASSIFIED) -> dict[str, str]:
    """Return the names of the columns that predictions add, by what they hold.

    None of them is a column of the table already.

    Examples
    --------
    >>> names_of_answers(["text", "label"])
    {'label': 'predicted_label', 'probability': 'probability', 'task': 'task'}
    """
    names: dict[str, str] = {}
    for key in made:
        name = key
        # Repeated, as a table of earlier predictions may have `predicted_label`, too.
        while name in columns:
            name = f"predicted_{name}"
        names[key] = name
    return names


def _rule(state: RunState) -> Rule:
    """Return the rule that a run last combined its adapters by."""
    combined = state.combined
    path = state.folder / "combined.json"
    in_recipe = state.recipe["rule"]["name"]
    # Only the recipe says which code is run: the user has trusted that file, not this one.
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
                f"`{path}` has no scale for the task `{missing[0]}`: it is not searched yet. "
                f"Go on with `perdure run {state.folder}`, or measure with "
                f"`perdure evaluate {state.folder}`."
            )
    return rule


def _likeliest_task(
    probabilities_by_task: Sequence[Float[Tensor, "examples _"]],
    places: Sequence[Sequence[int]],
    chosen: Int[Tensor, " examples"],
) -> list[int]:
    """Return the task that gives most of the probability of the chosen class, per example."""
    shares = []
    for probability, columns in zip(probabilities_by_task, places, strict=True):
        # True at the chosen class, if it is one of the task's own.
        is_chosen = torch.tensor(columns) == chosen[:, None]
        shares.append((probability * is_chosen).sum(1))
    return torch.stack(shares).argmax(0).tolist()
