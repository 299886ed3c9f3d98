"""A language model, which answers with text: causal (Llama, Qwen, GPT-2), or encoder and decoder (T5, BART)."""

import contextlib
import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import GenerationConfig, PreTrainedModel

from perdure.data.task import Rows, Task, TaskRows
from perdure.errors import DataError, InputError
from perdure.models import packing, pretrained, ranking
from perdure.models.backbone import Backbone, evaluating
from perdure.models.examples import BATCH_SIZE, Batch, Examples, Places
from perdure.models.logits import Logits
from perdure.models.model_files import ModelFiles
from perdure.models.output_layer import logits_at
from perdure.models.prompts import Prompts, Tokens

PACKED_TO_TRY = 4
"""The number of examples by which packing is compared with padding."""


class LanguageModel(Backbone):
    """A transformer that answers with text, by its own output layer: no task has a head.

    Parameters
    ----------
    model
        An `AutoModelForCausalLM` or `AutoModelForSeq2SeqLM`.
    prompts
        How rows become tokens.
    chat_template
        `auto`, or `none` where the tokenizer's template is left aside.
    normalized
        Whether choices are ranked by log p per token, rather than by log p.
    dtype
        The type in which `save` writes the weights.
    """

    has_heads = False
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
        self.prompts = prompts
        self.chat_template = chat_template
        self.normalized = normalized
        self.dtype = dtype
        self.width = model.config.get_text_config().hidden_size
        self._ranking = ranking.Ranking()
        self._packs: bool | None = None
        self._nothing = nn.Module()

    @property
    def settings(self) -> dict[str, Any]:
        prompts = self.prompts
        values = {
            "model": self.source,
            "max_length": prompts.max_length,
            "max_new_tokens": prompts.max_new_tokens,
            "truncate": prompts.truncate,
            "chat_template": self.chat_template,
            "system_message": prompts.system_message,
            "normalized": self.normalized,
            "dtype": str(self.model.dtype).removeprefix("torch."),
        }
        return values | ({"revision": self.revision} if self.revision else {})

    @functools.cached_property
    def hashes(self) -> dict[str, str]:
        """The SHA-256 of each file that it was read from, by name."""
        if self.files is None:
            return {}
        return self.files.hashes() | self.files.hashes_of_generation()

    # -- no task has anything of its own

    @property
    def heads(self) -> list[str]:
        return []

    def open(self, task: Task) -> None:
        pass

    def share(self, task: str) -> None:
        pass

    def own(self, task: str) -> nn.Module:
        return self._nothing

    def put(self, task: str, state: Mapping[str, Tensor]) -> None:
        pass

    def close(self, task: str) -> None:
        pass

    def keeping(self) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()

    # -- rows → examples

    def prepare(
        self, rows: Rows, *, batch_size: int = BATCH_SIZE, allow_empty: bool = False
    ) -> Examples:
        """Prompts and answers are tokenized here. Rows without an answer can be answered, but not learned."""
        tokens: list[Tokens] = []
        tasks: list[str] = []
        labels: list[int] = []
        for of_task in rows:
            data = of_task.data
            tokens += self._tokens(of_task)
            tasks += [of_task.task] * len(data)
            labels += data["label"][:] if "label" in data.column_names else [-1] * len(data)
        collate = functools.partial(_padded, layout=self._layout())
        lengths = [len(example.prompt) + len(example.answer) for example in tokens]
        return TextExamples(tokens, tasks, labels, lengths, collate, batch_size=batch_size)

    def _tokens(self, rows: TaskRows) -> Iterator[Tokens]:
        """Yield the tokens of each row of a task."""
        task, data, classes = rows
        if "image" in data.column_names:
            raise InputError(
                f"`{self.source}` is a language model, but the examples are images. Take a model of images as the "
                "backbone, such as `dinov2`."
            )
        for number, row in enumerate(data, start=1):
            where = f"Task `{task}`, row {row.get('row', number)}"
            prompt = row["messages"] if row.get("messages") else row["text"]
            answer = row.get("target")
            if answer is None and classes and row.get("label", -1) >= 0:
                answer = classes[row["label"]]
            yield self.prompts.tokens(prompt, answer, where)

    def _layout(self) -> "_Layout":
        config = self.model.config
        start = None
        if config.is_encoder_decoder:
            start = config.decoder_start_token_id
        return _Layout(self.processor.pad_token_id, start)

    def check_packing(self) -> None:
        if self.decodes:
            raise InputError(
                f"`packing` puts several examples into one line, but `{self.source}` has an "
                "encoder and a decoder, which read lines of their own. Leave it out: batches are "
                "sorted by length, so that little is padding."
            )

    def packed(self, examples: Examples, rows: Sequence[int]) -> Batch:
        self.check_packing()
        if not isinstance(examples, TextExamples):
            raise DataError("A language model packs examples that `Backbone.encode` has made.")
        if self._packs is None:
            self._packs = self._packs_exactly(examples, rows)
        if not self._packs:
            raise InputError(
                f"`{self.source}` lets examples that share a line see each other, or does not "
                "take their positions, so that `packing` would change the loss. Leave it out."
            )
        return self._packed(examples, rows)

    def _packed(self, examples: "TextExamples", rows: Sequence[int]) -> Batch:
        batch = examples.packed(rows, self.processor.pad_token_id, self.device)
        mask = batch.inputs["attention_mask"]
        # the attention of a model in half precision takes no other mask
        return replace(batch, inputs=batch.inputs | {"attention_mask": mask.to(self.model.dtype)})

    @torch.no_grad()
    def _packs_exactly(self, examples: "TextExamples", rows: Sequence[int]) -> bool:
        """Say whether the loss of some examples is the same in one line as padded."""
        some = rows[:PACKED_TO_TRY]
        # compared in the model's own type: autocast would hide what the mask does
        with evaluating(self), torch.autocast(self.device.type, enabled=False):
            padded = self.losses(examples.batch(some, self.device))
            try:
                difference = self.losses(self._packed(examples, some)) - padded
            except (TypeError, ValueError, RuntimeError, AttributeError, IndexError):
                return False  # an architecture without positions, or with a mask of its own
        return bool(difference.abs().max() < ranking.tolerance(self.model, padded))

    # -- a batch → numbers

    def forward(self, batch: Batch) -> Float[Tensor, "places vocabulary"]:
        """Return the model's own logits at each token of the answers, and nowhere else."""
        places = _places(batch)
        with logits_at(self.model, places.rows, places.columns):
            # packed or not, a cache would only cost memory where nothing is generated
            logits = self.model(**batch.inputs, use_cache=False).logits
        return logits[0].float()

    def read(
        self, hidden: Float[Tensor, "places vocabulary"], batch: Batch, head: str | None = None
    ) -> Logits:
        return Logits(hidden, batch.targets, _places(batch).examples, len(batch))

    def features(self, batch: Batch) -> Float[Tensor, "batch features"]:
        """Return the mean over the prompt's tokens of the last hidden states, of the encoder where there is one."""
        prompt = prompt_of(batch)
        core = self.model.get_encoder() if self.decodes else self.model.base_model
        hidden = core(**prompt, **({} if self.decodes else {"use_cache": False})).last_hidden_state
        hidden = hidden.float()
        weights = prompt["attention_mask"][..., None].to(hidden.dtype)
        return (hidden * weights).sum(1) / weights.sum(1)

    @property
    def decodes(self) -> bool:
        """Whether a decoder of its own gives the answer."""
        return bool(self.model.config.is_encoder_decoder)

    # -- a batch → answers

    def rank(
        self, batch: Batch, choices: Mapping[str, Sequence[str]]
    ) -> dict[str, Float[Tensor, "batch _"]]:
        """Return log p(choice | prompt) for the choices of each task, or its mean per token where that is `normalized`.

        A word that several tasks have is ranked once. The choice's end counts: without it, "no" would never be less
        likely than "nothing".
        """
        words = list(dict.fromkeys(word for of_task in choices.values() for word in of_task))
        places = _places(batch)
        prompt = prompt_of(batch)
        scores = torch.empty(len(batch), len(words), device=self.device)
        # a word has other tokens behind a prompt that ends with a space than behind one that does not
        for joint in dict.fromkeys(places.joints):
            rows = [row for row, other in enumerate(places.joints) if other == joint]
            tails = [self.prompts.answer(word, joint) for word in words]
            # all rows are read, for a mixture knows the expert of each row of the batch
            values = self._ranking.scores(self.model, prompt, tails)
            if self.normalized:
                values = values / torch.tensor([len(tail) for tail in tails], device=self.device)
            scores[rows] = values[rows]
        columns = {word: column for column, word in enumerate(words)}
        ranked = {}
        for task, of_task in choices.items():
            ranked[task] = scores[:, [columns[word] for word in of_task]]
        return ranked

    @torch.no_grad()
    def generate(self, batch: Batch) -> list[str]:
        """Answer each prompt with the likeliest token, one after the other, until it ends or is too long."""
        prompt = prompt_of(batch)
        if not self.decodes:
            prompt = _padded_left(prompt, self.processor.pad_token_id)
        settings = GenerationConfig(
            max_new_tokens=self.prompts.max_new_tokens,
            do_sample=False,
            num_beams=1,
            eos_token_id=list(self.prompts.stops),
            pad_token_id=self.processor.pad_token_id,
            decoder_start_token_id=self._layout().start,
        )
        with _without_own_generation(self.model), pretrained.quietly():
            tokens = self.model.generate(**prompt, generation_config=settings)
        first = 1 if self.decodes else prompt["input_ids"].shape[1]
        return [self.prompts.text(answer) for answer in tokens[:, first:].tolist()]

    # -- a model that others load

    def stock_head(self, task: str) -> tuple[str, nn.Linear] | None:
        return None

    def save(self, folder: Path, tasks: Sequence[str], labels: Sequence[str]) -> None:
        """Write a stock checkpoint, with its tokenizer and the settings with which it generates."""
        with pretrained.quietly(), pretrained.stored_as(self.model, self.dtype):
            self.model.save_pretrained(folder)
            self.processor.save_pretrained(folder)


# -- tokens → tensors


@dataclass(frozen=True)
class _Layout:
    """How tokens become tensors: the token for padding, and that with which a decoder begins, if there is one."""

    pad: int
    start: int | None


@dataclass(eq=False)
class TextExamples(Examples):
    """Prompts with their answers. The targets of a batch are the answers' tokens, wherever they stand."""

    def batch(self, rows: Sequence[int], device: torch.device | str = "cpu") -> Batch:
        """These rows as one batch, each in a line of its own."""
        chosen: list[Tokens] = [self.inputs[row] for row in rows]
        inputs = self.collate(chosen)
        decodes = "decoder_input_ids" in inputs
        lines = range(len(chosen))
        # a causal model gives the first token of an answer at the last of the prompt, a decoder at its own first
        starts = [0 if decodes else len(example.prompt) - 1 for example in chosen]
        return self._batch(rows, inputs, lines, starts, device)

    def packed(self, rows: Sequence[int], pad: int, device: torch.device | str = "cpu") -> Batch:
        """These rows as one batch for training, as many in a line as fit, so that little is padding.

        Each example sees itself alone, by a mask and positions of its own. What asks for the tokens of one example, such
        as `features`, cannot read such a batch.
        """
        chosen: list[Tokens] = [self.inputs[row] for row in rows]
        whole = [(*example.prompt, *example.answer) for example in chosen]
        lines, starts = packing.arranged([len(tokens) for tokens in whole])
        inputs = packing.inputs(whole, lines, starts, pad)
        firsts = [
            start + len(example.prompt) - 1 for start, example in zip(starts, chosen, strict=True)
        ]
        return self._batch(rows, inputs, lines, firsts, device)

    def _batch(
        self,
        rows: Sequence[int],
        inputs: Mapping[str, Tensor],
        lines: Sequence[int],
        starts: Sequence[int],
        device: torch.device | str,
    ) -> Batch:
        """Return a batch whose answers begin at these lines and columns of the input."""
        chosen: list[Tokens] = [self.inputs[row] for row in rows]
        owners, at, columns, targets = [], [], [], []
        for number, example in enumerate(chosen):
            length = len(example.answer)
            owners += [number] * length
            at += [lines[number]] * length
            columns += range(starts[number], starts[number] + length)
            targets += example.answer
        places = Places(
            examples=_indices(owners, device),
            rows=_indices(at, device),
            columns=_indices(columns, device),
            prompts=_indices([len(example.prompt) for example in chosen], device),
            joints=tuple(example.joint for example in chosen),
        )
        moved = {name: value.to(device) for name, value in inputs.items()}
        tasks = tuple(self.tasks[row] for row in rows)
        return Batch(moved, _indices(targets, device), tasks, places)


def _indices(values: Sequence[int], device: torch.device | str) -> Int[Tensor, " values"]:
    return torch.tensor(values, dtype=torch.long).to(device)


def _padded(examples: Sequence[Tokens], layout: _Layout) -> dict[str, Tensor]:
    """Put examples together, padded on the right to the longest."""
    if layout.start is None:
        whole = [[*example.prompt, *example.answer] for example in examples]
        return _rectangle(whole, layout.pad, "input_ids", "attention_mask")
    inputs = _rectangle([e.prompt for e in examples], layout.pad, "input_ids", "attention_mask")
    # a decoder reads each token of the answer but the last, behind its own first token
    before = [[layout.start, *example.answer[:-1]] for example in examples]
    longest = max(map(len, before))
    # encoder and decoder never have the same width: by its own, a layer's input says which mask is its
    width = longest + (longest == inputs["input_ids"].shape[1])
    names = ("decoder_input_ids", "decoder_attention_mask")
    return inputs | _rectangle(before, layout.pad, *names, width=width)


def _rectangle(
    sequences: Sequence[Sequence[int]], pad: int, ids: str, mask: str, *, width: int = 0
) -> dict[str, Tensor]:
    width = width or max(map(len, sequences))
    tokens = torch.full((len(sequences), width), pad)
    reads = torch.zeros(len(sequences), width, dtype=torch.long)
    for number, sequence in enumerate(sequences):
        tokens[number, : len(sequence)] = torch.tensor(sequence)
        reads[number, : len(sequence)] = 1
    return {ids: tokens, mask: reads}


def _places(batch: Batch) -> Places:
    if batch.places is None:
        raise DataError(
            "A language model reads batches of prompts, as `Backbone.encode` makes them."
        )
    return batch.places


def prompt_of(batch: Batch) -> dict[str, Tensor]:
    """Return the prompts of a batch without their answers, padded on the right."""
    lengths = _places(batch).prompts
    if batch.inputs["attention_mask"].dim() > 2:
        raise InputError(
            "A batch with several examples in a line has no prompts by themselves. Train without "
            "`packing`, or compute losses alone."
        )
    width = int(lengths.max())
    columns = torch.arange(width, device=lengths.device)
    mask = (columns < lengths[:, None]).long()
    return {"input_ids": batch.inputs["input_ids"][:, :width], "attention_mask": mask}


def _padded_left(prompt: Mapping[str, Tensor], pad: int) -> dict[str, Tensor]:
    """Move the padding of prompts to the left, so that what is generated follows each prompt's last token."""
    ids, mask = prompt["input_ids"], prompt["attention_mask"]
    width = ids.shape[1]
    moved = (torch.arange(width, device=ids.device) + mask.sum(1, keepdim=True)) % width
    left = mask.gather(1, moved)
    return {"input_ids": ids.gather(1, moved).where(left.bool(), pad), "attention_mask": left}


@contextlib.contextmanager
def _without_own_generation(model: PreTrainedModel) -> Iterator[None]:
    """Set a model's own settings for generating aside while the block runs: it would sample, or forbid repetition."""
    own = model.generation_config
    model.generation_config = GenerationConfig()
    try:
        yield
    finally:
        model.generation_config = own
