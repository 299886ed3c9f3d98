"""Batches of prompts with their answers, padded on either side or packed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from perdure.errors import DataError, InputError
from perdure.models import packing
from perdure.models.examples import Batch, Examples, Places
from perdure.models.prompts import Tokens


@dataclass(frozen=True)
class Layout:
    """The token ids for padding and for the start of a decoder (None without a decoder)."""

    pad: int
    start: int | None


@dataclass(eq=False)
class TextExamples(Examples):
    """Prompts with their answers; the tokens of the answers are the targets of a batch."""

    def batch(self, rows: Sequence[int], device: torch.device | str = "cpu") -> Batch:
        """Return the examples with indices `rows` as a batch with one example per row."""
        chosen = self._tokens(rows)
        inputs = self.collate(chosen)
        decodes = "decoder_input_ids" in inputs
        lines = range(len(chosen))
        # A causal model predicts the first token of an answer at the last token of the
        # prompt, a decoder at its start token.
        starts = [0 if decodes else len(example.prompt) - 1 for example in chosen]
        return self._batch(rows, inputs, lines, starts, device)

    def packed(self, rows: Sequence[int], pad: int, device: torch.device | str = "cpu") -> Batch:
        """Return the examples with indices `rows` as one training batch, packed into fewer rows.

        Each row contains as many examples as fit. The attention mask and the positions
        make each example attend only to itself. Functions that need the tokens of single
        examples, such as `features`, cannot read such a batch.
        """
        chosen = self._tokens(rows)
        whole = [(*example.prompt, *example.answer) for example in chosen]
        lines, starts = packing.arranged([len(tokens) for tokens in whole])
        inputs = packing.inputs(whole, lines, starts, pad)
        firsts = [
            start + len(example.prompt) - 1 for start, example in zip(starts, chosen, strict=True)
        ]
        return self._batch(rows, inputs, lines, firsts, device)

    def _tokens(self, rows: Sequence[int]) -> list[Tokens]:
        tokens: list[Tokens] = []
        for row in rows:
            example = self.inputs[row]
            assert isinstance(example, Tokens)
            tokens.append(example)
        return tokens

    def _batch(
        self,
        rows: Sequence[int],
        inputs: Mapping[str, Tensor],
        lines: Sequence[int],
        starts: Sequence[int],
        device: torch.device | str,
    ) -> Batch:
        """Return a batch in which each answer starts at the given row and column of the input."""
        chosen = self._tokens(rows)
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


def padded(examples: Sequence[Tokens], layout: Layout) -> dict[str, Tensor]:
    """Combine examples into tensors, padded on the right to the length of the longest."""
    if layout.start is None:
        whole = [[*example.prompt, *example.answer] for example in examples]
        return _rectangle(whole, layout.pad, "input_ids", "attention_mask")
    inputs = _rectangle([e.prompt for e in examples], layout.pad, "input_ids", "attention_mask")
    # A decoder reads its start token, and all tokens of the answer except the last.
    before = [[layout.start, *example.answer[:-1]] for example in examples]
    longest = max(map(len, before))
    # Encoder and decoder inputs never have the same width, so the width of a layer's
    # input tells which of the two masks applies.
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


def places_of(batch: Batch) -> Places:
    if batch.places is None:
        raise DataError(
            "A language model reads only batches of prompts, which `Backbone.encode` makes."
        )
    return batch.places


def prompt_of(batch: Batch) -> dict[str, Tensor]:
    """Return the prompts of a batch without their answers, padded on the right."""
    lengths = places_of(batch).prompts
    if batch.inputs["attention_mask"].dim() > 2:
        raise InputError(
            "A batch with several examples in a row has no separate prompts. Train without "
            "`packing`, or compute only losses."
        )
    width = int(lengths.max())
    columns = torch.arange(width, device=lengths.device)
    mask = (columns < lengths[:, None]).long()
    return {"input_ids": batch.inputs["input_ids"][:, :width], "attention_mask": mask}


def padded_left(prompt: Mapping[str, Tensor], pad: int) -> dict[str, Tensor]:
    """Move the padding to the left, so that an answer follows each prompt's last token."""
    ids, mask = prompt["input_ids"], prompt["attention_mask"]
    width = ids.shape[1]
    moved = (torch.arange(width, device=ids.device) + mask.sum(1, keepdim=True)) % width
    left = mask.gather(1, moved)
    return {"input_ids": ids.gather(1, moved).where(left.bool(), pad), "attention_mask": left}
