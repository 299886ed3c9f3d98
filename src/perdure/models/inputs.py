"""Covariances of the inputs of a backbone's layers.

Some rules use the covariances stored with an adapter; some methods derive from them the
subspace in which they train.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from jaxtyping import Float
from torch import Tensor, nn

from perdure.models.backbone import Backbone
from perdure.models.examples import Batch, Examples

# The number of tokens to sum in single precision before the result is added in double precision.
CHUNK = 4096


class _Sum:
    """The sum of x xᵀ over tokens x, and the number of tokens."""

    def __init__(self) -> None:
        self.products: Float[Tensor, "in in"] | None = None
        self.tokens = 0

    def add(self, x: Float[Tensor, "tokens in"]) -> None:
        # The sum stays on the accelerator, except on Apple's, which has no double precision.
        device = "cpu" if x.device.type == "mps" else x.device
        if self.products is None:
            width = x.shape[-1]
            shape = (width, width)
            self.products = torch.zeros(shape, dtype=torch.double, device=device)
        # With chunks, the only temporary is one matrix rather than one per token.
        for chunk in x.float().split(CHUNK):
            products = chunk.T @ chunk
            self.products += products.to(device)
        self.tokens += len(x)

    def mean(self) -> Float[Tensor, "in in"]:
        assert self.products is not None
        return (self.products / self.tokens).cpu()


@torch.no_grad()
def input_covariances(
    backbone: Backbone, examples: Examples, layers: Sequence[str], *, limit: int | None = None
) -> dict[tuple[str, ...], Float[Tensor, "in in"]]:
    """Compute E[x xᵀ] (uncentred) of each layer's inputs, over all tokens except padding.

    Layers that read the same tensor, such as the key and value projections, share one
    covariance. All covariances are computed in a single pass over the examples.

    Parameters
    ----------
    layers
        The names of layers in `backbone.model`.
    limit
        The maximum number of examples to read, drawn with a fixed seed; by default all are read.

    Returns
    -------
    dict
        The covariances, keyed by the names of the layers that share the input. They are
        in double precision, on the CPU.
    """
    backbone.eval()
    # A separate generator: measuring must not affect the random numbers of the training around it.
    generator = torch.Generator().manual_seed(0)
    order = torch.randperm(len(examples), generator=generator)
    drawn = order[:limit].tolist()
    groups: list[tuple[str, ...]] = []
    sums: defaultdict[str, _Sum] = defaultdict(_Sum)
    for _, batch in examples.batches(drawn, device=backbone.device):
        if not groups:
            groups = _same_inputs(backbone, examples.batch(drawn[:1], backbone.device), layers)

        # The default argument binds this batch; a closure would see the next one.
        def receive(name: str, x: Tensor, batch: Batch = batch) -> None:
            tokens = without_padding(x, batch)
            sums[name].add(tokens)

        # One layer of each group is enough.
        names = [group[0] for group in groups]
        with _watched(backbone.model, names, receive):
            backbone(batch)
    covariances = {}
    for group in groups:
        covariances[group] = sums[group[0]].mean()
    return covariances


def _same_inputs(
    backbone: Backbone, example: Batch, layers: Sequence[str]
) -> list[tuple[str, ...]]:
    """Group the layers that read the same tensors, as observed by running one example."""
    # Keep the tensors until all layers have run: the id of a freed tensor could be reused.
    seen: dict[str, list[Tensor]] = {name: [] for name in layers}

    def keep(name: str, x: Tensor) -> None:
        seen[name].append(x)

    with _watched(backbone.model, layers, keep):
        backbone(example)
    # A layer may run several times in one pass, so the key is a tuple.
    groups: dict[tuple[int, ...], list[str]] = {}
    for name, tensors in seen.items():
        key = tuple(id(x) for x in tensors)
        groups.setdefault(key, []).append(name)
    return [tuple(group) for group in groups.values()]


@contextmanager
def _watched(
    model: nn.Module, layers: Sequence[str], receive: Callable[[str, Tensor], None]
) -> Iterator[None]:
    """Call `receive(name, input)` whenever one of the layers runs inside the context."""

    def hook(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        return lambda _, arguments: receive(name, arguments[0])

    handles = []
    for name in layers:
        layer = model.get_submodule(name)
        handles.append(layer.register_forward_pre_hook(hook(name)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def without_padding(x: Tensor, batch: Batch) -> Float[Tensor, "tokens in"]:
    """Return the inputs or outputs of a layer, one row per token, without padding."""
    # Encoder and decoder have masks of different widths. Cross-attention reads the
    # encoder's states for its keys and values, and the decoder's for its queries: the
    # shape tells which mask applies.
    for name in ("attention_mask", "decoder_attention_mask"):
        mask = batch.inputs.get(name)
        if mask is not None and mask.shape == x.shape[:-1]:
            return x[mask.bool()]
    # Images have no mask, a pooler reads one vector per text, and the output layer of a
    # language model reads only the tokens that predict an answer.
    return x.flatten(0, -2)
