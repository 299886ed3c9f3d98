"""Functions that save a task vector as a LoRA adapter for peft, exactly or truncated to a rank."""

import json
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from perdure.checkpoints.peft_folder import CONFIG, PREFIX, WEIGHTS
from perdure.errors import CheckpointError, InputError
from perdure.storage.tensors import as_bytes, header, is_finite, new
from perdure.vectors.task_vector import Entry, LowRank, dense


@dataclass(frozen=True)
class Layer:
    """The name of a layer in the adapter and the shape of its weight.

    Attributes
    ----------
    embedding
        True if the layer is an embedding, which peft stores differently.
    """

    name: str
    shape: tuple[int, ...]
    embedding: bool


def truncated(entry: Entry, rank: int | None) -> tuple[LowRank, float, float]:
    """Truncate a change to a given rank, or return a low-rank change in full if no rank is given.

    Returns
    -------
    The factors, the squared Frobenius norm of the truncated part, and the squared Frobenius norm
    of the change.

    Raises
    ------
    InputError
        No rank is given, and the change is not low-rank.
    CheckpointError
        The change is not finite.
    """
    if rank is None and not isinstance(entry, LowRank):
        raise InputError(
            "The rule returns a full matrix, but an adapter can only store matrices of limited "
            "rank: give `--rank`."
        )
    if not isinstance(entry, LowRank):
        entry = dense(entry).float()
    _check_finite(entry)

    largest = min(entry.shape)
    kept = rank or largest
    if isinstance(entry, LowRank):
        if entry.rank == 0:
            # peft does not support rank 0, but factors of rank 1 with zeros are equivalent.
            B = entry.B.new_zeros(entry.shape[0], 1)
            A = entry.A.new_zeros(1, entry.shape[1])
            return LowRank(B, A), 0.0, 0.0
        U, S, Vh = entry.svd()
        if entry.rank <= min(largest, kept):
            # The rank is low enough. Return the factors without the rounding error of an SVD.
            return entry, 0.0, S.double().square().sum().item()
    else:
        U, S, Vh = torch.linalg.svd(entry, full_matrices=False)

    # The leading singular triples are the closest matrix of that rank (Eckart & Young).
    # The squares of the other singular values sum to the squared error.
    squares = S.double().square()
    change = LowRank(U[:, :kept] * S[:kept], Vh[:kept])
    return change, squares[kept:].sum().item(), squares.sum().item()


def _check_finite(change: LowRank | Tensor) -> None:
    matrices = (change.B, change.A) if isinstance(change, LowRank) else (change,)
    if not all(map(is_finite, matrices)):
        raise CheckpointError(
            "The merged change would not be finite (NaN or Inf): "
            "a scale is too large, or not a number."
        )


def tensors(layers: Mapping[Layer, LowRank]) -> dict[str, Tensor]:
    """Return the factors with the names and shapes that peft uses."""
    factors: dict[str, Tensor] = {}
    for layer, change in layers.items():
        name = f"{PREFIX}{layer.name}"
        if layer.embedding:
            # The table's change is B A, with one row per token; peft stores its transpose.
            factors[f"{name}.lora_embedding_A"] = change.B.T.contiguous()
            factors[f"{name}.lora_embedding_B"] = change.A.T.contiguous()
            continue
        A = change.A
        B = change.B
        kernel = layer.shape[2:]
        if kernel:
            # A is a convolution with the kernel size of W, and B one with the kernel size
            # 1. (For other layers, do not use the shape of W, which a `Conv1D` stores as
            # in × out.)
            A = A.reshape(len(A), *layer.shape[1:])
            B = B.reshape(*B.shape, *[1] * len(kernel))
        factors[f"{name}.lora_A.weight"] = A.contiguous()
        factors[f"{name}.lora_B.weight"] = B.contiguous()
    return factors


def config(layers: Mapping[Layer, LowRank], stated: Mapping[str, object]) -> dict[str, object]:
    """Return the peft configuration of an adapter with these layers.

    The scale is 1, because alpha equals the rank. Layers whose rank is not the most
    common one are listed in `rank_pattern` and `alpha_pattern`.

    Parameters
    ----------
    stated
        Additional settings, which override the generated ones.
    """
    ranks = {layer.name: change.rank for layer, change in layers.items()}
    usual = Counter(ranks.values()).most_common(1)[0][0]
    # peft matches patterns against the end of a name; `^` requires the full name.
    others: dict[str, int] = {}
    for name, rank in ranks.items():
        if rank != usual:
            others[f"^{re.escape(name)}"] = rank
    return {
        "peft_type": "LORA",
        "r": usual,
        "lora_alpha": usual,
        "rank_pattern": others,
        "alpha_pattern": others,
        "target_modules": sorted(ranks),
        "lora_dropout": 0.0,
        "bias": "none",
        "use_rslora": False,
        "use_dora": False,
        "init_lora_weights": True,
        "inference_mode": True,
        **stated,
    }


def write(
    folder: Path,
    configuration: Mapping[str, object],
    values: Mapping[str, Tensor],
) -> None:
    """Write the configuration and weights of an adapter to a folder."""
    # Sort the keys, as peft does.
    text = json.dumps(configuration, indent=2, sort_keys=True)
    (folder / CONFIG).write_text(text + "\n", encoding="utf-8")
    stored = {name: new(value) for name, value in values.items()}
    start, _ = header(stored, {"format": "pt"})
    path = folder / WEIGHTS
    try:
        with path.open("wb") as file:
            file.write(start)
            for value in values.values():
                file.write(as_bytes(value.contiguous()))
    except OSError as error:
        # The error from a failed write does not name the file, but a message to the user should.
        raise OSError(error.errno, error.strerror, str(path)) from error
