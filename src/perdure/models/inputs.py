"""What goes into the layers of a backbone: covariances of inputs, which are kept with an adapter or span a subspace."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from jaxtyping import Float
from torch import Tensor, nn

from perdure.models.backbone import Backbone
from perdure.models.examples import Batch, Examples

CHUNK = 4096
"""Tokens whose products are added up in single precision, before the sum goes on in double."""


@torch.no_grad()
def input_covariances(
    backbone: Backbone, examples: Examples, layers: Sequence[str], *, limit: int | None = None
) -> dict[tuple[str, ...], Float[Tensor, "in in"]]:
    """E[x xᵀ] (not centred) over what goes into each layer, all tokens but padding. One pass over the examples.

    Layers that read the same tensor, such as key and value, have one covariance.

    Parameters
    ----------
    layers
        Names of layers in `backbone.model`.
    limit
        Take so many examples, drawn with a fixed seed; by default all.

    Returns
    -------
    dict
        By the names of the layers with the same input; in double precision, on the CPU.
    """
    backbone.eval()
    drawn = torch.randperm(len(examples), generator=torch.Generator().manual_seed(0))[
        :limit
    ].tolist()
    groups: list[tuple[str, ...]] = []
    sums: dict[str, Tensor] = {}
    tokens: dict[str, int] = {}
    for _, batch in examples.batches(drawn, device=backbone.device):
        groups = groups or _same_inputs(backbone, batch, layers)

        def add(name: str, x: Tensor, batch: Batch = batch) -> None:
            rows = _tokens(x, batch)
            device = "cpu" if x.device.type == "mps" else x.device  # which has no double precision
            before = sums.setdefault(
                name, torch.zeros(x.shape[-1], x.shape[-1], dtype=torch.double, device=device)
            )
            for part in rows.split(
                CHUNK
            ):  # one matrix is the only temporary: there is none for each example
                before += (part.T @ part).to(device)
            tokens[name] = tokens.get(name, 0) + len(rows)

        with _watched(backbone.model, [group[0] for group in groups], add):
            backbone(batch)
    return {group: (sums[group[0]] / tokens[group[0]]).cpu() for group in groups}


def _same_inputs(backbone: Backbone, batch: Batch, layers: Sequence[str]) -> list[tuple[str, ...]]:
    """The layers in groups that read the very same tensors."""
    seen: dict[str, list[Tensor]] = {
        name: [] for name in layers
    }  # held, so that no address is used twice
    with _watched(backbone.model, layers, lambda name, x: seen[name].append(x)):
        backbone(Batch({name: value[:1] for name, value in batch.inputs.items()}))
    groups: dict[tuple[int, ...], tuple[str, ...]] = {}
    for name, tensors in seen.items():
        key = tuple(id(x) for x in tensors)
        groups[key] = (*groups.get(key, ()), name)
    return list(groups.values())


@contextmanager
def _watched(
    model: nn.Module, layers: Sequence[str], receive: Callable[[str, Tensor], None]
) -> Iterator[None]:
    """Call `receive(name, input)` whenever one of the layers runs."""

    def hook(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        return lambda _, arguments: receive(name, arguments[0])

    handles = [model.get_submodule(name).register_forward_pre_hook(hook(name)) for name in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _tokens(x: Tensor, batch: Batch) -> Float[Tensor, "tokens in"]:
    mask = batch.inputs.get("attention_mask")
    if mask is not None and mask.shape == x.shape[:-1]:
        return x[mask.bool()]
    return x.flatten(0, -2)
