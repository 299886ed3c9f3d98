"""Rank choices by their probability after a prompt, reading the prompt only once.

All choices are packed into one row after the prompt's cache, each attending only to the
prompt and to itself. An encoder–decoder model reads them as a batch instead, because T5's
relative positions cannot be set. On first use, this fast way is compared with the slow
way of reading each prompt and choice in full. If the results differ, the slow way is used
for that model.
"""

import copy
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel
from transformers.cache_utils import Cache
from transformers.modeling_outputs import BaseModelOutput
from transformers.utils.generic import ModelOutput

from perdure.models import placement, shares
from perdure.models.output_layer import logits_at

Prompt = Mapping[str, Tensor]
"""`input_ids` and `attention_mask`, padded on the right."""
Tails = Sequence[Sequence[int]]
"""The tokens of each choice, including its end token."""
Way = Callable[[PreTrainedModel, Prompt, Tails], Tensor]

# The maximum number of choice tokens to read together in a batch. Logits take most of the memory.
MOST_PLACES = 4096
# The number of choices on which the fast way is tested: enough for one to attend to another.
TRIED = 3
# In nats. In single precision, exact ways differ by 1e-5; an ignored mask makes whole nats.
TOLERANCE = 1e-3
# The tolerance in half precision, as a share of the mean value.
ROUNDED = 5e-2
OLD_NAME = "past_key_values"


@dataclass
class Ranking:
    """A scorer of choices, which tests on first use whether the fast way is exact for a model.

    Attributes
    ----------
    exact
        True if the fast way was found to be exact; None before it was tested.
    """

    exact: bool | None = field(default=None, init=False)

    @torch.no_grad()
    def scores(
        self, model: PreTrainedModel, prompt: Prompt, tails: Tails
    ) -> Float[Tensor, "batch choices"]:
        """Return log p(choice | prompt) for each prompt and choice."""
        fast = _side_by_side if model.config.is_encoder_decoder else _packed
        if self.exact is None:
            exact = _agree(fast, model, prompt, tails[:TRIED])
            self.exact = shares.agreed(exact) if placement.is_sharded(model) else exact
        way = fast if self.exact else _whole
        return way(model, prompt, tails)


def _agree(fast: Way, model: PreTrainedModel, prompt: Prompt, tails: Tails) -> bool:
    """Return whether the fast way gives the same scores as reading each choice in full."""
    # Only the shortest and the longest prompt: padding is what the fast way may get
    # wrong, and reading the full batch the slow way takes as long as reading several
    # batches the fast way.
    lengths = prompt["attention_mask"].sum(1)
    rows = torch.stack([lengths.argmin(), lengths.argmax()]).unique()
    prompt = {name: values[rows] for name, values in prompt.items()}
    try:
        whole = _whole(model, prompt, tails)
        values = fast(model, prompt, tails)
    except (TypeError, ValueError, RuntimeError, AttributeError, NotImplementedError, IndexError):
        # Some architectures have no cache, or one that does not accept our mask.
        return False
    return agree(model, values, whole)


def agree(model: PreTrainedModel, values: Tensor, expected: Tensor) -> bool:
    """Return True if two ways of computing log p differ only by the model's rounding errors."""
    difference = (values - expected).abs()
    if model.dtype == torch.float32:
        return bool(difference.max() < TOLERANCE)
    # Means, because rounding to half precision can change a single value by more than an
    # ignored mask does. On SmolLM2 in bfloat16, one loss of 4.1 was 0.35 off, and eight
    # losses were 0.04 off on average; with an ignored mask, the average was 0.44.
    largest = ROUNDED * max(1.0, expected.abs().mean().item())
    return bool(difference.mean() < largest)


# -- causal models


def _packed(model: PreTrainedModel, prompt: Prompt, tails: Tails) -> Float[Tensor, "batch choices"]:
    """Score the choices packed into one row, continuing from the cache of the prompt."""
    mask = prompt["attention_mask"]
    lengths = mask.sum(1)
    rows = torch.arange(len(mask), device=mask.device)
    with logits_at(model, rows, lengths - 1):
        read = model(**prompt, use_cache=True)
    first = read.logits[0].float().log_softmax(1)
    scores = []
    for piece in _pieces(tails, len(mask)):
        # Copied, because reading adds to the cache, and all choices start from the prompt's.
        cache = copy.deepcopy(_cache_of(read))
        beginnings = [tail[0] for tail in piece]
        scores.append(first[:, beginnings] + _behind(model, cache, mask, piece))
    return torch.cat(scores, dim=1)


def _behind(
    model: PreTrainedModel, cache: Cache, prompt_mask: Int[Tensor, "batch prompt"], tails: Tails
) -> Float[Tensor, "batch choices"]:
    """Return log p of each choice without its first token, continuing from a cache."""
    device = prompt_mask.device
    batch = len(prompt_mask)
    row = _row(tails, device)
    count = len(row.tokens)
    # A token attends to the prompt, and to the tokens of its own choice up to itself.
    own = (row.owners[:, None] == row.owners) & (row.offsets[:, None] >= row.offsets)
    own = own.expand(batch, count, count)
    prompts = prompt_mask.bool()[:, None].expand(batch, count, -1)
    sees = torch.cat([prompts, own], dim=2)[:, None]
    # Every implementation adds such a mask to the attention scores, unlike a boolean mask.
    smallest = torch.finfo(model.dtype).min
    mask = torch.zeros_like(sees, dtype=model.dtype).masked_fill(~sees, smallest)
    # The positions of a choice continue from the prompt, wherever the choice is in the row.
    positions = prompt_mask.sum(1, keepdim=True) + row.offsets
    rows = torch.arange(batch, device=device).repeat_interleave(count)
    columns = torch.arange(count, device=device).repeat(batch)
    with logits_at(model, rows, columns):
        logits = model(
            input_ids=row.tokens.expand(batch, count),
            attention_mask=mask,
            position_ids=positions,
            use_cache=True,
            **{_cache_name(model): cache},
        ).logits[0]
    values = _log_p(logits, row.following.repeat(batch))
    return _sums(values.view(batch, count), row.owners, len(tails))


@dataclass(frozen=True)
class _Row:
    """The tokens of all choices in one row, without the last token of each.

    Attributes
    ----------
    owners, offsets
        The index of the choice that each token belongs to, and the token's position in it.
    following
        The next token of the choice, for each token.
    """

    tokens: Int[Tensor, " tokens"]
    owners: Int[Tensor, " tokens"]
    offsets: Int[Tensor, " tokens"]
    following: Int[Tensor, " tokens"]


def _row(tails: Tails, device: torch.device) -> _Row:
    tokens: list[int] = []
    owners: list[int] = []
    offsets: list[int] = []
    following: list[int] = []
    for number, tail in enumerate(tails):
        length = len(tail) - 1
        tokens += tail[:-1]
        following += tail[1:]
        owners += [number] * length
        offsets += range(length)
    columns = (tokens, owners, offsets, following)
    return _Row(*(torch.tensor(column, device=device) for column in columns))


# -- encoder–decoders


def _side_by_side(
    model: PreTrainedModel, prompt: Prompt, tails: Tails
) -> Float[Tensor, "batch choices"]:
    """Score the choices as a batch, continuing from the cache of an encoder–decoder model."""
    mask = prompt["attention_mask"]
    batch = len(mask)
    states = placement.run(model, model.get_encoder(), prompt).last_hidden_state
    start = torch.full((batch, 1), model.config.decoder_start_token_id, device=mask.device)
    read = model(
        encoder_outputs=BaseModelOutput(last_hidden_state=states),
        attention_mask=mask,
        decoder_input_ids=start,
        use_cache=True,
    )
    first = read.logits[:, 0].float().log_softmax(1)
    scores = []
    for piece in _pieces(tails, batch):
        cache = copy.deepcopy(_cache_of(read))
        # Repeat each prompt for each choice; the choices of a prompt are adjacent.
        cache.batch_repeat_interleave(len(piece))
        copies = {
            "encoder_outputs": BaseModelOutput(
                last_hidden_state=states.repeat_interleave(len(piece), 0)
            ),
            "attention_mask": mask.repeat_interleave(len(piece), 0),
            _cache_name(model): cache,
        }
        beginnings = [tail[0] for tail in piece]
        scores.append(first[:, beginnings] + _decoded(model, copies, piece, batch))
    return torch.cat(scores, dim=1)


def _decoded(
    model: PreTrainedModel, copies: Mapping[str, object], tails: Tails, batch: int
) -> Float[Tensor, "batch choices"]:
    """Return log p of each choice without its first token, computed by a decoder."""
    tokens, reads = _rectangle([tail[:-1] for tail in tails], model.device)
    rows, columns = torch.nonzero(reads.repeat(batch, 1), as_tuple=True)
    with logits_at(model, rows, columns):
        logits = model(
            decoder_input_ids=tokens.repeat(batch, 1),
            use_cache=True,
            **copies,
        ).logits[0]
    following = _row(tails, model.device).following
    values = _log_p(logits, following.repeat(batch))
    sums = _sums(values[None], rows, batch * len(tails))
    return sums.view(batch, len(tails))


# -- every architecture


def _whole(model: PreTrainedModel, prompt: Prompt, tails: Tails) -> Float[Tensor, "batch choices"]:
    """Score each choice by reading it with its prompt: slow, but correct for every architecture."""
    batch = len(prompt["attention_mask"])
    scores = []
    for tail in tails:
        if model.config.is_encoder_decoder:
            inputs, first = _to_decode(model, prompt, tail)
        else:
            inputs, first = _continued(prompt, tail)
        columns = first[:, None] + torch.arange(len(tail), device=first.device)
        rows = torch.arange(batch, device=first.device).repeat_interleave(len(tail))
        with logits_at(model, rows, columns.flatten()):
            logits = model(**inputs, use_cache=False).logits[0]
        following = torch.tensor(tail, device=first.device)
        values = _log_p(logits, following.repeat(batch))
        scores.append(values.view(batch, -1).sum(1))
    return torch.stack(scores, dim=1)


def _to_decode(
    model: PreTrainedModel, prompt: Prompt, tail: Sequence[int]
) -> tuple[dict[str, Tensor], Int[Tensor, " batch"]]:
    """Return a decoder's inputs for one choice, and the columns that predict its first token."""
    batch = len(prompt["attention_mask"])
    before = [model.config.decoder_start_token_id, *tail[:-1]]
    tokens = torch.tensor(before, device=model.device).expand(batch, -1)
    first = torch.zeros(batch, dtype=torch.long, device=model.device)
    return {**prompt, "decoder_input_ids": tokens}, first


def _continued(
    prompt: Prompt, tail: Sequence[int]
) -> tuple[dict[str, Tensor], Int[Tensor, " batch"]]:
    """Return each prompt followed by a choice, and the columns that predict its first token."""
    lengths = prompt["attention_mask"].sum(1)
    sequences = []
    for row, length in zip(prompt["input_ids"].tolist(), lengths.tolist(), strict=True):
        sequences.append([*row[:length], *tail[:-1]])
    tokens, reads = _rectangle(sequences, lengths.device)
    return {"input_ids": tokens, "attention_mask": reads}, lengths - 1


# -- shared functions


def _cache_name(model: PreTrainedModel) -> str:
    """Return the name of a model's cache argument, which differs between transformers models."""
    parameters = inspect.signature(model.forward).parameters
    return "cache" if "cache" in parameters else OLD_NAME


def _cache_of(output: ModelOutput) -> Cache:
    cache = output.get("cache")
    return output[OLD_NAME] if cache is None else cache


def _pieces(tails: Tails, batch: int) -> Iterator[Tails]:
    """Split the choices into groups that are small enough to be read together."""
    piece: list[Sequence[int]] = []
    tokens = 0
    for tail in tails:
        if piece and (tokens + len(tail)) * batch > MOST_PLACES:
            yield piece
            piece = []
            tokens = 0
        piece.append(tail)
        tokens += len(tail)
    yield piece


def _rectangle(sequences: Tails, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the sequences padded on the right, and the mask that excludes the padding."""
    width = max(len(sequence) for sequence in sequences)
    shape = (len(sequences), width)
    tokens = torch.zeros(shape, dtype=torch.long)
    reads = torch.zeros(shape, dtype=torch.long)
    for number, sequence in enumerate(sequences):
        length = len(sequence)
        tokens[number, :length] = torch.tensor(sequence)
        reads[number, :length] = 1
    return tokens.to(device), reads.to(device)


def _log_p(
    logits: Float[Tensor, "places vocabulary"], tokens: Int[Tensor, " places"]
) -> Float[Tensor, " places"]:
    return -F.cross_entropy(logits.float(), tokens, reduction="none")


def _sums(
    values: Float[Tensor, "batch tokens"], owners: Int[Tensor, " tokens"], count: int
) -> Float[Tensor, "batch owners"]:
    """Sum the values of the tokens that belong to each owner, that is, to each choice."""
    totals = values.new_zeros(len(values), count)
    return totals.index_add_(1, owners, values)
