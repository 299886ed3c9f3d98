"""How likely each of several choices is behind a prompt, the prompt being read once.

All choices are packed into one row behind the prompt's cache, each seeing the prompt and itself alone. A model with a
decoder of its own reads them side by side, for T5's positions are relative and cannot be given. Either way is compared
with reading each choice whole the first time: an architecture for which it is not exact is read whole ever after.
"""

import copy
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

from perdure.models.output_layer import logits_at

Prompt = Mapping[str, Tensor]
"""`input_ids` and `attention_mask`, padded on the right."""
Tails = Sequence[Sequence[int]]
"""The tokens of each choice, the last of which ends it."""
Way = Callable[[PreTrainedModel, Prompt, Tails], Tensor]

MOST_PLACES = 4096
"""The most tokens of choices that are read at once, over a batch: their logits are what takes the memory."""
OLD_NAME = "past_key_values"
TRIED = 3
"""The number of choices by which the fast way is compared: enough that one could see another."""
ROUNDED = 5e-2
"""The same in half precision, as a share of the value."""
TOLERANCE = 1e-3
"""In nats. Exact ways differ by 1e-5 in single precision; a mask that is not obeyed, by whole nats."""


@dataclass
class Ranking:
    """The way in which a model's choices are ranked.

    Attributes
    ----------
    exact
        Whether the fast way was found exact; None before it was tried.
    """

    exact: bool | None = field(default=None, init=False)

    @torch.no_grad()
    def scores(
        self, model: PreTrainedModel, prompt: Prompt, tails: Tails
    ) -> Float[Tensor, "batch choices"]:
        """Return log p(choice | prompt) for each prompt and choice."""
        fast = _side_by_side if model.config.is_encoder_decoder else _packed
        if self.exact is None:
            self.exact = _agree(fast, model, prompt, tails[:TRIED])
        return fast(model, prompt, tails) if self.exact else _whole(model, prompt, tails)


def _agree(fast: Way, model: PreTrainedModel, prompt: Prompt, tails: Tails) -> bool:
    """Say whether the fast way gives what reading the choices whole gives."""
    try:
        whole = _whole(model, prompt, tails)
        difference = fast(model, prompt, tails) - whole
    except (TypeError, ValueError, RuntimeError, AttributeError, NotImplementedError, IndexError):
        return False  # no cache, or none that takes a mask of ours
    return bool(difference.abs().max() < tolerance(model, whole))


def tolerance(model: PreTrainedModel, values: Tensor) -> float:
    """Return by how much log p may differ between two exact ways of computing it."""
    if model.dtype == torch.float32:
        return TOLERANCE
    return ROUNDED * max(1.0, values.abs().max().item())


def _packed(model: PreTrainedModel, prompt: Prompt, tails: Tails) -> Float[Tensor, "batch choices"]:
    """Read all choices in one row behind the cache of the prompt."""
    mask = prompt["attention_mask"]
    lengths = mask.sum(1)
    rows = torch.arange(len(mask), device=mask.device)
    with logits_at(model, rows, lengths - 1):
        read = model(**prompt, use_cache=True)
    first = read.logits[0].float().log_softmax(1)
    scores = []
    for some in _pieces(tails, len(mask)):
        # reading adds to the cache, which the next choices must find as the prompt left it
        cache = copy.deepcopy(_cache_of(read))
        started = first[:, [tail[0] for tail in some]]
        scores.append(started + _behind(model, cache, mask, some))
    return torch.cat(scores, dim=1)


def _behind(
    model: PreTrainedModel, cache: Any, prompt_mask: Int[Tensor, "batch prompt"], tails: Tails
) -> Float[Tensor, "batch choices"]:
    """Return log p of all tokens of each choice but its first, all choices being packed behind a cache."""
    device, batch = prompt_mask.device, len(prompt_mask)
    tokens = torch.tensor([token for tail in tails for token in tail[:-1]], device=device)
    owners = torch.tensor([number for number, tail in enumerate(tails) for _ in tail[:-1]])
    offsets = torch.cat([torch.arange(len(tail) - 1) for tail in tails])
    own = (owners[:, None] == owners) & (offsets[:, None] >= offsets)
    own = own.to(device).expand(batch, *own.shape)
    prompts = prompt_mask.bool()[:, None].expand(-1, len(tokens), -1)
    seen = torch.cat([prompts, own], dim=2)[:, None]
    smallest = torch.finfo(model.dtype).min
    rows = torch.arange(batch, device=device).repeat_interleave(len(tokens))
    columns = torch.arange(len(tokens), device=device).repeat(batch)
    with logits_at(model, rows, columns):
        logits = model(
            input_ids=tokens.expand(batch, -1),
            attention_mask=torch.zeros_like(seen, dtype=model.dtype).masked_fill(~seen, smallest),
            position_ids=prompt_mask.sum(1, keepdim=True) + offsets.to(device),
            use_cache=True,
            **{_cache_name(model): cache},
        ).logits[0]
    following = torch.tensor([token for tail in tails for token in tail[1:]], device=device)
    values = -F.cross_entropy(logits.float(), following.repeat(batch), reduction="none")
    return _sums(values.view(batch, -1), owners.to(device), len(tails))


def _side_by_side(
    model: PreTrainedModel, prompt: Prompt, tails: Tails
) -> Float[Tensor, "batch choices"]:
    """Read the choices as a batch, behind what the encoder and the decoder's first token left in the cache."""
    mask = prompt["attention_mask"]
    states = model.get_encoder()(**prompt).last_hidden_state
    start = torch.full((len(mask), 1), model.config.decoder_start_token_id, device=mask.device)
    read = model(
        encoder_outputs=BaseModelOutput(last_hidden_state=states),
        attention_mask=mask,
        decoder_input_ids=start,
        use_cache=True,
    )
    first = read.logits[:, 0].float().log_softmax(1)
    scores = []
    for some in _pieces(tails, len(mask)):
        cache = copy.deepcopy(_cache_of(read))
        cache.batch_repeat_interleave(len(some))
        tokens, reads = _rectangle([tail[:-1] for tail in some], mask.device)
        rows, columns = torch.nonzero(reads.repeat(len(mask), 1), as_tuple=True)
        with logits_at(model, rows, columns):
            logits = model(
                encoder_outputs=BaseModelOutput(
                    last_hidden_state=states.repeat_interleave(len(some), 0)
                ),
                attention_mask=mask.repeat_interleave(len(some), 0),
                decoder_input_ids=tokens.repeat(len(mask), 1),
                use_cache=True,
                **{_cache_name(model): cache},
            ).logits[0]
        following = torch.tensor([token for tail in some for token in tail[1:]])
        following = following.repeat(len(mask)).to(mask.device)
        values = -F.cross_entropy(logits.float(), following, reduction="none")
        started = first[:, [tail[0] for tail in some]]
        rest = _sums(values[None], rows, len(mask) * len(some)).view(len(mask), len(some))
        scores.append(started + rest)
    return torch.cat(scores, dim=1)


def _whole(model: PreTrainedModel, prompt: Prompt, tails: Tails) -> Float[Tensor, "batch choices"]:
    """Read each prompt with each choice: slow, and right for every architecture."""
    mask = prompt["attention_mask"]
    batch, lengths = len(mask), mask.sum(1).tolist()
    scores = []
    for tail in tails:
        following = torch.tensor(tail, device=mask.device)
        if model.config.is_encoder_decoder:
            before = torch.tensor([model.config.decoder_start_token_id, *tail[:-1]])
            inputs = {**prompt, "decoder_input_ids": before.to(mask.device).expand(batch, -1)}
            columns = [range(len(tail)) for _ in lengths]
        else:
            rows = zip(prompt["input_ids"].tolist(), lengths, strict=True)
            tokens, reads = _rectangle([[*row[:n], *tail[:-1]] for row, n in rows], mask.device)
            inputs = {"input_ids": tokens, "attention_mask": reads}
            columns = [range(n - 1, n - 1 + len(tail)) for n in lengths]
        at = torch.tensor([list(of_row) for of_row in columns], device=mask.device)
        owners = torch.arange(batch, device=mask.device).repeat_interleave(len(tail))
        with logits_at(model, owners, at.flatten()):
            logits = model(**inputs, use_cache=False).logits[0]
        values = -F.cross_entropy(logits.float(), following.repeat(batch), reduction="none")
        scores.append(values.view(batch, -1).sum(1))
    return torch.stack(scores, dim=1)


def _cache_name(model: PreTrainedModel) -> str:
    """Return what a model calls the cache: transformers has begun to rename it, model by model."""
    return "cache" if "cache" in inspect.signature(model.forward).parameters else OLD_NAME


def _cache_of(output: Any) -> Any:
    cache = output.get("cache")
    return output.get(OLD_NAME) if cache is None else cache


def _pieces(tails: Tails, batch: int) -> Iterator[Tails]:
    """Yield the choices in pieces that are small enough to be read at once."""
    piece: list[Sequence[int]] = []
    for tail in tails:
        if piece and (sum(map(len, piece)) + len(tail)) * batch > MOST_PLACES:
            yield piece
            piece = []
        piece.append(tail)
    yield piece


def _rectangle(sequences: Tails, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return sequences padded on the right, and the mask of what is none of the padding."""
    width = max(map(len, sequences))
    tokens = torch.zeros(len(sequences), width, dtype=torch.long)
    reads = torch.zeros(len(sequences), width, dtype=torch.long)
    for number, sequence in enumerate(sequences):
        tokens[number, : len(sequence)] = torch.tensor(sequence)
        reads[number, : len(sequence)] = 1
    return tokens.to(device), reads.to(device)


def _sums(
    values: Float[Tensor, "batch tokens"], owners: Int[Tensor, " tokens"], count: int
) -> Float[Tensor, "batch owners"]:
    """Return the sum of the tokens of each owner."""
    return values.new_zeros(len(values), count).index_add_(1, owners, values)
