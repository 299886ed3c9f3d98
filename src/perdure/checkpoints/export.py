"""A task vector as a PEFT LoRA folder that stock peft loads: of a rank that is asked for, or exact."""

import json
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from perdure.checkpoints.peft_folder import CONFIG, PREFIX, WEIGHTS
from perdure.errors import CheckpointError, InputError
from perdure.storage.tensors import as_bytes, header, is_finite, new
from perdure.vectors.task_vector import Entry, LowRank, dense


@dataclass(frozen=True)
class Layer:
    """A layer as the adapter will name it, the shape of its weight, and whether it is an embedding."""

    name: str
    shape: tuple[int, ...]
    embedding: bool


def truncated(entry: Entry, rank: int | None) -> tuple[LowRank, float, float]:
    """Two factors of a change, the square of what they leave out, and the square of the whole (Frobenius).

    Raises
    ------
    InputError
        No rank is asked for, and the change is not low-rank.
    CheckpointError
        The change is not finite.
    """
    if rank is None and not isinstance(entry, LowRank):
        raise InputError(
            "The rule gives a full matrix, which an adapter holds to some rank only: give `--rank`."
        )
    entry = entry if isinstance(entry, LowRank) else dense(entry).float()
    if not all(
        is_finite(part) for part in ((entry.B, entry.A) if isinstance(entry, LowRank) else (entry,))
    ):
        raise CheckpointError(
            "The merged change would not be finite (NaN or Inf): a scale is too great, or no number."
        )
    if isinstance(entry, LowRank) and not entry.rank:  # peft has no adapters of rank 0
        return (
            LowRank(entry.B.new_zeros(entry.shape[0], 1), entry.A.new_zeros(1, entry.shape[1])),
            0.0,
            0.0,
        )
    least = min(entry.shape)
    if isinstance(entry, LowRank) and entry.rank <= min(least, rank or least):
        return entry, 0.0, entry.svd()[1].double().square().sum().item()
    if isinstance(entry, LowRank):
        U, S, Vh = entry.svd()
    else:
        U, S, Vh = torch.linalg.svd(entry, full_matrices=False)
    squares = S.double().square()
    kept = rank or least
    change = LowRank(U[:, :kept] * S[:kept], Vh[:kept])
    return change, squares[kept:].sum().item(), squares.sum().item()


def tensors(layers: Mapping[Layer, LowRank]) -> dict[str, Tensor]:
    """peft's names and shapes of the factors."""
    found = {}
    for layer, change in layers.items():
        B, A = change.B, change.A
        if (
            layer.embedding
        ):  # its table is B A with the rows of a vocabulary; peft keeps it the other way round
            found[f"{PREFIX}{layer.name}.lora_embedding_A"] = B.T.contiguous()
            found[f"{PREFIX}{layer.name}.lora_embedding_B"] = A.T.contiguous()
        else:
            ones = (1,) * (len(layer.shape) - 2)
            found[f"{PREFIX}{layer.name}.lora_A.weight"] = (
                A.reshape(len(A), *layer.shape[1:]) if ones else A.contiguous()
            )
            found[f"{PREFIX}{layer.name}.lora_B.weight"] = B.reshape(*B.shape, *ones).contiguous()
    return found


def config(layers: Mapping[Layer, LowRank], **stated: Any) -> dict[str, Any]:
    """peft's configuration: alpha is the rank, so that B A counts once; layers of another rank are listed."""
    ranks = {layer.name: change.rank for layer, change in layers.items()}
    usual = Counter(ranks.values()).most_common(1)[0][0]
    other = {f"^{re.escape(name)}": rank for name, rank in ranks.items() if rank != usual}
    return {
        "peft_type": "LORA",
        "r": usual,
        "lora_alpha": usual,
        "rank_pattern": other,
        "alpha_pattern": other,
        "target_modules": sorted(ranks),
        "lora_dropout": 0.0,
        "bias": "none",
        "use_rslora": False,
        "use_dora": False,
        "init_lora_weights": True,
        "inference_mode": True,
        **stated,
    }


def write(folder: Path, configuration: Mapping[str, Any], values: Mapping[str, Tensor]) -> None:
    """Write both files."""
    text = json.dumps(configuration, indent=2, sort_keys=True)
    (folder / CONFIG).write_text(text + "\n", encoding="utf-8")
    start, _ = header({name: new(value) for name, value in values.items()}, {"format": "pt"})
    path = folder / WEIGHTS
    try:
        with path.open("wb") as file:
            file.write(start)
            for value in values.values():
                file.write(as_bytes(value.contiguous()))
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error
