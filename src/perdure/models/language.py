"""Language models, which answer with text: causal (Llama, GPT-2) or encoder–decoder (T5)."""

import contextlib
import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import GenerationConfig, PreTrainedModel

from perdure.data.task import Rows, TaskRows
from perdure.errors import DataError, InputError
from perdure.models import placement, pretrained, quantised, ranking, shares
from perdure.models.backbone import evaluating
from perdure.models.examples import BATCH_SIZE, Batch, Examples
from perdure.models.headless import Headless
from perdure.models.logits import Logits
from perdure.models.model_files import ModelFiles
from perdure.models.output_layer import logits_at
from perdure.models.prompts import Prompts, Tokens
from perdure.models.text_examples import (
    Layout,
    TextExamples,
    padded,
    padded_left,
    places_of,
    prompt_of,
)

PACKED_TO_TRY = 8
"""The number of examples on which packing is compared with padding."""
WHOLE_AT_ONCE = 4
"""The batch size if all tokens of an example are predicted."""


@dataclass(frozen=True)
class Written:
    """A generated answer.

    Attributes
    ----------
    score
        The log-probability of the answer per token, in nats.
    ended
        False if generation was stopped at `max_new_tokens`.
    """

    text: str
    score: float
    ended: bool


class LanguageModel(Headless):
    """A transformer that answers with text, using its output layer instead of heads.

    Parameters
    ----------
    model
        An `AutoModelForCausalLM` or `AutoModelForSeq2SeqLM`.
    prompts
        The object that turns rows into tokens.
    chat_template
        `auto`, or `none` if the tokenizer's chat template is not used.
    normalized
        True to rank choices by log p per token rather than by log p.
    dtype
        The data type in which `save` writes the weights.
    """

    writes = True
    model: PreTrainedModel

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: Any,
        prompts: Prompts,
        *,
        source: str,
        chat_template: Literal["auto", "none"] = "auto",
        normalized: bool = False,
        files: ModelFiles | None = None,
        dtype: torch.dtype = torch.float32,
    ):
        super().__init__(model, tokenizer, source=source, files=files)
        self.kind = "text"  # an outline may have no tokenizer to tell the kind by
        self.prompts = prompts
        self.chat_template = chat_template
        self.normalized = normalized
        self.dtype = dtype
        self.width = model.config.get_text_config().hidden_size
        self._ranking = ranking.Ranking()
        self._packs: bool | None = None

    @property
    def settings(self) -> dict[str, Any]:
        prompts = self.prompts
        dtype = str(self.model.dtype).removeprefix("torch.")
        values = {
            "model": self.source,
            "max_length": prompts.max_length,
            "max_new_tokens": prompts.max_new_tokens,
            "truncate": prompts.truncate,
            "chat_template": self.chat_template,
            "system_message": prompts.system_message,
            "normalized": self.normalized,
            "dtype": quantised.NF4 if quantised.is_quantised(self.model) else dtype,
        }
        return values | ({"revision": self.revision} if self.revision else {})

    @functools.cached_property
    def hashes(self) -> dict[str, str]:
        """The SHA-256 of each file that the model was loaded from, by file name."""
        if self.files is None:
            return {}
        return self.files.hashes() | self.files.hashes_of_generation()

    # -- rows → examples

    def prepare(
        self, rows: Rows, *, batch_size: int = BATCH_SIZE, allow_empty: bool = False
    ) -> Examples:
        """Tokenize prompts and answers.

        Rows without an answer can be used for prediction, but not for training.
        """
        tokens: list[Tokens] = []
        tasks: list[str] = []
        labels: list[int] = []
        for of_task in rows:
            data = of_task.data
            tokens += self._tokens(of_task)
            tasks += [of_task.task] * len(data)
            labels += data["label"][:] if "label" in data.column_names else [-1] * len(data)
        collate = functools.partial(padded, layout=self._layout())
        lengths = [len(example.prompt) + len(example.answer) for example in tokens]
        cut = sum(example.cut for example in tokens)
        return TextExamples(tokens, tasks, labels, lengths, collate, batch_size=batch_size, cut=cut)

    def _tokens(self, rows: TaskRows) -> Iterator[Tokens]:
        """Yield the tokens of each row of a task."""
        task, data, classes = rows
        if "image" in data.column_names:
            raise InputError(
                f"`{self.source}` is a language model, but the examples are images. Use an image "
                "model as the backbone, such as `dinov2`."
            )
        if "text_pair" in data.column_names:
            raise InputError(
                f"Task `{task}` has pairs of texts, but `{self.source}` is a language model, which "
                "reads one prompt. Name both columns in a template, such as "
                '`prompt: "{premise}\\n{hypothesis}"`.'
            )
        for number in range(1, len(data) + 1):
            row: dict[str, Any] = data[number - 1]
            where = f"Task `{task}`, row {row.get('row', number)}" if task else f"Prompt {number}"
            prompt = row["messages"] if row.get("messages") else row["text"]
            answer = row.get("target")
            if answer is None and classes and row.get("label", -1) >= 0:
                answer = classes[row["label"]]
            yield self.prompts.tokens(prompt, answer, where)

    def pieces(
        self, texts: Sequence[str], *, length: int, most: int, batch_size: int = BATCH_SIZE
    ) -> Examples:
        """Split texts into pieces on which the model's loss can be measured.

        A causal model predicts every token of a piece except the first. If the tokenizer
        has a start token, it precedes the piece. An encoder–decoder model reads the first
        half of a piece and predicts the second.
        """
        tokens: list[Tokens] = []
        for text in texts:
            tokens += self.prompts.pieces(text, min(length, self.prompts.max_length))
        step = max(1, len(tokens) // max(1, most))
        tokens = tokens[::step][:most]
        lengths = [len(example.prompt) + len(example.answer) for example in tokens]
        collate = functools.partial(padded, layout=self._layout())
        names, labels = [""] * len(tokens), [-1] * len(tokens)
        return TextExamples(tokens, names, labels, lengths, collate, batch_size=batch_size)

    def whole(self, examples: Examples) -> Examples:
        """Return the examples with all tokens but the first as the answer to predict.

        Those of an encoder–decoder model are returned unchanged, since its decoder
        predicts only the answer. Batches are small, because every token has logits.
        """
        tokens: list[Tokens] = []
        for example in examples.inputs:
            assert isinstance(example, Tokens)
            if not self.decodes:
                after = (*example.prompt[1:], *example.answer)
                example = Tokens(example.prompt[:1], after)
            tokens.append(example)
        collate = functools.partial(padded, layout=self._layout())
        return TextExamples(
            tokens,
            examples.tasks,
            examples.labels,
            examples.lengths,
            collate,
            batch_size=WHOLE_AT_ONCE,
        )

    def _layout(self) -> Layout:
        config = self.model.config
        start = None
        if config.is_encoder_decoder:
            start = config.decoder_start_token_id
        return Layout(self.processor.pad_token_id, start)

    def check_packing(self) -> None:
        if self.decodes:
            raise InputError(
                f"`packing` puts several examples into one row, but `{self.source}` has an "
                "encoder and a decoder, which read separate rows. Leave it out: batches are "
                "sorted by length, so there is little padding."
            )

    def packed(self, examples: Examples, rows: Sequence[int]) -> Batch:
        self.check_packing()
        if not isinstance(examples, TextExamples):
            raise DataError("A language model packs only examples that `Backbone.encode` made.")
        if self._packs is None:
            self._packs = self._packs_exactly(examples, rows)
        if not self._packs:
            raise InputError(
                f"`{self.source}` lets examples in the same row attend to each other, or ignores "
                "their positions, so `packing` would change the loss. Leave it out."
            )
        return self._packed(examples, rows)

    def _packed(self, examples: TextExamples, rows: Sequence[int]) -> Batch:
        batch = examples.packed(rows, self.processor.pad_token_id, self.device)
        mask = batch.inputs["attention_mask"]
        # in half precision, attention accepts only a mask of the same data type
        return replace(batch, inputs=batch.inputs | {"attention_mask": mask.to(self.model.dtype)})

    @torch.no_grad()
    def _packs_exactly(self, examples: TextExamples, rows: Sequence[int]) -> bool:
        """Return whether a few examples have the same loss when packed as when padded."""
        some = rows[:PACKED_TO_TRY]
        # compared in the model's data type: autocast would hide the effect of the mask
        with evaluating(self), torch.autocast(self.device.type, enabled=False):
            expected = self.losses(examples.batch(some, self.device))
            try:
                losses = self.losses(self._packed(examples, some))
            except (TypeError, ValueError, RuntimeError, AttributeError, IndexError):
                return False  # an architecture without positions, or with a mask of its own
        exact = ranking.agree(self.model, losses, expected)
        return shares.agreed(exact) if placement.is_sharded(self.model) else exact

    # -- a batch → numbers

    def forward(self, batch: Batch) -> Float[Tensor, "places vocabulary"]:
        """Return the model's logits at the positions that predict the tokens of the answers."""
        places = places_of(batch)
        with logits_at(self.model, places.rows, places.columns):
            # A cache would only cost memory here, where nothing is generated.
            logits = self.model(**batch.inputs, use_cache=False).logits
        return logits[0].float()

    def read(
        self, hidden: Float[Tensor, "places vocabulary"], batch: Batch, head: str | None = None
    ) -> Logits:
        return Logits(hidden, batch.targets, places_of(batch).examples, len(batch))

    def features(self, batch: Batch) -> Float[Tensor, "batch features"]:
        """Return the mean of the last hidden states over the tokens of the prompt.

        An encoder–decoder model uses the hidden states of its encoder. The answer is not read.
        """
        prompt = prompt_of(batch)
        if self.decodes:
            output = placement.run(self.model, self.model.get_encoder(), prompt)
        else:
            prompt_only = {**prompt, "use_cache": False}
            output = placement.run(self.model, self.model.base_model, prompt_only)
        hidden = output.last_hidden_state.float()
        weights = prompt["attention_mask"][..., None].to(hidden.dtype)
        return (hidden * weights).sum(1) / weights.sum(1)

    @property
    def decodes(self) -> bool:
        """True if the model has a separate decoder, which generates the answer."""
        return bool(self.model.config.is_encoder_decoder)

    # -- a batch → answers

    def rank(
        self, batch: Batch, choices: Mapping[str, Sequence[str]]
    ) -> dict[str, Float[Tensor, "batch _"]]:
        """Return log p(choice | prompt) for the choices of each task.

        If `normalized` is set, each value is divided by the number of tokens in the choice.

        A choice that occurs in several tasks is scored only once. The end token is part
        of a choice: without it, "no" would always be at least as likely as "nothing".
        """
        columns: dict[str, int] = {}
        for of_task in choices.values():
            for word in of_task:
                columns.setdefault(word, len(columns))
        words = list(columns)
        places = places_of(batch)
        prompt = prompt_of(batch)
        scores = torch.empty(len(batch), len(words), device=self.device)
        # The tokens of a word depend on whether the prompt before it ends with a space.
        joints = list(dict.fromkeys(places.joints))
        if placement.is_sharded(self.model):
            joints = shares.union(joints)  # all processes must make the same passes
        for joint in joints:
            rows = [row for row, other in enumerate(places.joints) if other == joint]
            tails = [self.prompts.answer(word, joint) for word in words]
            # All rows are ranked, because a mixture assigns its experts to the rows of the batch.
            values = self._ranking.scores(self.model, prompt, tails)
            if self.normalized:
                values = values / torch.tensor([len(tail) for tail in tails], device=self.device)
            scores[rows] = values[rows]
        ranked = {}
        for task, of_task in choices.items():
            ranked[task] = scores[:, [columns[word] for word in of_task]]
        return ranked

    def generate(self, batch: Batch) -> list[str]:
        """Generate an answer to each prompt, always choosing the most likely token.

        Generation stops at an end token, or after `max_new_tokens` tokens.
        """
        return [self.prompts.text(tokens) for tokens in self._generated(batch)]

    @torch.no_grad()
    def generate_scored(self, batch: Batch, temperature: float | None = None) -> list[Written]:
        """Generate answers as `generate` does, and compute the log-probability of each.

        With a `temperature`, the answers are sampled with torch's global random generator.
        """
        answers = self._generated(batch, temperature)
        prompts = zip(batch.inputs["input_ids"].tolist(), places_of(batch).prompts, strict=True)
        examples: list[Tokens] = []
        for (ids, length), answer in zip(prompts, answers, strict=True):
            examples.append(Tokens(tuple(ids[:length]), answer))
        # read the answers again: keeping all logits during generation would take too much memory
        lengths = [len(example.prompt) + len(example.answer) for example in examples]
        collate = functools.partial(padded, layout=self._layout())
        count = len(examples)
        again = TextExamples(examples, batch.tasks, [-1] * count, lengths, collate)
        losses = self.losses(again.batch(range(count), self.device)).tolist()
        written = []
        for tokens, loss in zip(answers, losses, strict=True):
            ended = tokens[-1] in self.prompts.stops
            written.append(Written(self.prompts.text(tokens), -loss, ended))
        return written

    def continued(
        self, beginning: str, *, count: int, length: int, temperature: float
    ) -> list[str]:
        """Sample `count` texts that follow the beginning of a prompt, of at most `length` tokens.

        They are drawn with torch's global random generator, and end where the model ends
        a prompt. Only a causal model can continue a prompt.
        """
        opening = self.prompts.opening(beginning)
        settings = self._generation(temperature)
        settings.max_new_tokens = length
        texts = []
        for first in range(0, count, BATCH_SIZE):
            size = min(BATCH_SIZE, count - first)
            ids = torch.tensor([opening] * size, device=self.device)
            inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
            texts += map(self.prompts.text, self._written(inputs, settings))
        return texts

    def _generated(self, batch: Batch, temperature: float | None = None) -> list[tuple[int, ...]]:
        """Return the tokens of each answer, including the token that ends it, if any."""
        prompt = prompt_of(batch)
        if not self.decodes:
            prompt = padded_left(prompt, self.processor.pad_token_id)
        return self._written(prompt, self._generation(temperature))

    @torch.no_grad()
    def _written(
        self, inputs: Mapping[str, Tensor], settings: GenerationConfig
    ) -> list[tuple[int, ...]]:
        """Return the tokens that the model adds to each row, up to the one that ends it."""
        # the checkpoint's settings are not used: they may sample, or forbid repetition
        with _generating(self.model, GenerationConfig()), pretrained.quietly():
            model: Any = self.model  # typed as a module, whose attributes may be tensors
            if self.decodes and placement.is_sharded(model):
                # transformers would call the encoder without the weights outside of its blocks
                states = placement.run(model, model.get_encoder(), inputs)
                inputs = {**inputs, "encoder_outputs": states}
            tokens = model.generate(**inputs, generation_config=settings)
        first = 1 if self.decodes else inputs["input_ids"].shape[1]
        stops = set(self.prompts.stops)
        answers = []
        for answer in tokens[:, first:].tolist():
            # tokens after the end are padding
            end = next((i for i, token in enumerate(answer) if token in stops), len(answer))
            answers.append(tuple(answer[: end + 1]))
        return answers

    def _generation(self, temperature: float | None = None) -> GenerationConfig:
        """Return settings for generation that stops at the end of an answer.

        It is greedy without a `temperature`; with one, all tokens can be drawn.
        """
        settings = GenerationConfig(
            max_new_tokens=self.prompts.max_new_tokens,
            do_sample=False,
            num_beams=1,
            bos_token_id=self.processor.bos_token_id,
            eos_token_id=list(self.prompts.stops),
            pad_token_id=self.processor.pad_token_id,
            decoder_start_token_id=self._layout().start,
        )
        if temperature is not None:
            settings.update(do_sample=True, temperature=temperature, top_k=0, top_p=1.0)
        return settings

    # -- a model that others load

    @property
    def task_type(self) -> str:
        return "SEQ_2_SEQ_LM" if self.decodes else "CAUSAL_LM"

    def stock_head(self, task: str) -> tuple[str, nn.Linear] | None:
        return None

    def save(self, folder: Path, tasks: Sequence[str], labels: Sequence[str]) -> None:
        """Write a stock checkpoint, with its tokenizer and generation settings."""
        with (
            pretrained.quietly(),
            pretrained.stored_as(self.model, self.dtype),
            _generating(self.model, self._generation()),
        ):
            self.model.save_pretrained(folder)
            self.processor.save_pretrained(folder)


@contextlib.contextmanager
def _generating(model: PreTrainedModel, settings: GenerationConfig) -> Iterator[None]:
    """Replace the generation settings of a model while the block runs."""
    own = model.generation_config
    model.generation_config = settings
    try:
        yield
    finally:
        model.generation_config = own
