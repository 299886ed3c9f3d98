"""What a task has learned, as files: a PEFT folder that stock peft loads, and beside it the start of training."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save as to_bytes
from torch import Tensor, nn

from perdure.errors import CheckpointError
from perdure.models import adapters
from perdure.models.adapters import Adapter
from perdure.storage.tensors import TensorFile

PREFIX = "base_model.model."
CONFIG, WEIGHTS, START = "adapter_config.json", "adapter_model.safetensors", "start.safetensors"
KEPT = {"inputs": "inputs.safetensors"}
"""The file of each thing that adapters keep for rules."""
MIDDLE = {
    "lora_A.weight": 0,
    "lora_B.weight": 1,
    "bottleneck_down.weight": 0,
    "bottleneck_down.bias": 0,
    "bottleneck_up.weight": 1,
    "bottleneck_up.bias": -1,
    "full_weight": -1,
    "full_bias": -1,
}
"""Which dimension of a parameter is the module's rank: of A and `down` the first, of B and `up` the last; -1: none."""
MAY_LACK = "full_bias"
"""Not every layer has a bias."""


def contents(
    adapter: Adapter, *, base: str, head: tuple[str, nn.Linear] | None
) -> dict[str, bytes]:
    """The files of an adapter: a PEFT folder `adapter/` that `peft.PeftModel.from_pretrained` loads, and the start.

    No files where there is no module.

    `head` (name and layer) goes with it as peft's `modules_to_save`, so that the stock classification model gives the
    task's logits.
    """
    if adapter.config is None:
        return {}
    config = adapter.config.to_dict() | {"base_model_name_or_path": base, "inference_mode": True}
    tensors = {PREFIX + name: value.contiguous() for name, value in adapter.parameters.items()}
    if head:
        name, layer = head
        config["modules_to_save"] = [name]
        tensors |= {
            f"{PREFIX}{name}.{key}": value.detach().cpu()
            for key, value in layer.state_dict().items()
        }
    plain: Any = {
        key: sorted(value) if isinstance(value, set) else value for key, value in config.items()
    }
    found = {
        f"adapter/{CONFIG}": json.dumps(plain, indent=2, sort_keys=True, default=str).encode(),
        f"adapter/{WEIGHTS}": to_bytes(tensors, metadata={"format": "pt"}),
        START: to_bytes(adapter.start),
    }
    kept = {KEPT[name]: to_bytes(_shared(by_layer)) for name, by_layer in adapter.kept.items()}
    return found | kept


def _shared(by_layer: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Layers that have the same tensor have it once, under all their names."""
    names: dict[int, list[str]] = {}
    for name, value in by_layer.items():
        names.setdefault(id(value), []).append(name)
    return {",".join(group): by_layer[group[0]] for group in names.values()}


def load(folder: Path, name: str, wanted: int | None = None) -> Adapter:
    """Read such files; `folder` is the PEFT folder. Shapes are compared with the configuration before anything is read.

    `wanted` is the method's rank, if that is known: the adapter has it, or a multiple where the method lets it grow.

    Raises
    ------
    CheckpointError
        A file is missing or damaged, or they do not fit each other.
    """
    start, weights = TensorFile(folder.parent / START), TensorFile(folder / WEIGHTS)
    layers = {_layer(key) for key in start.tensors}
    config = adapters.config_from(folder / CONFIG, layers)
    rank = adapters.width_of(config)
    if rank and wanted and rank % wanted:
        raise CheckpointError(f"`{folder / CONFIG}` has rank {rank}, but the recipe says {wanted}.")
    for key, stored in start.tensors.items():
        other = weights.tensors.get(PREFIX + key)
        shape, middle = (
            stored.shape,
            next((place for part, place in MIDDLE.items() if key.endswith(part)), None),
        )
        inner = shape[middle : middle + 1] if middle is not None and middle >= 0 else (rank,)
        kinds = {stored.dtype, other.dtype if other else ""}
        if (
            middle is None
            or other is None
            or other.shape != shape
            or inner != (rank,)
            or kinds != {"F32"}
        ):
            raise CheckpointError(
                f"`{key}` in `{start.path}` ({stored.dtype}, shape {shape}) does not fit "
                f"`{folder / CONFIG}` (rank {rank}) or `{weights.path}`."
            )
    parts = [
        part for part in MIDDLE if part.startswith(adapters.prefix_of(config)) and part != MAY_LACK
    ]
    if missing := {f"{layer}.{part}" for layer in layers for part in parts} - set(start.tensors):
        raise CheckpointError(f"`{start.path}` has no `{min(missing)}`.")
    parameters = {
        key: weights.read(PREFIX + key) for key in start.tensors
    }  # a head may lie beside them
    kept = _load_kept(folder.parent)
    for layer, value in kept.get("inputs", {}).items():
        down = start.tensors.get(f"{layer}.lora_A.weight")
        if down is None or value.shape != (down.shape[1], down.shape[1]):
            path = folder.parent / KEPT["inputs"]
            raise CheckpointError(
                f"`{path}`: `{layer}` ({list(value.shape)}) does not fit the adapter."
            )
    return Adapter(name, config, start.read_all(), parameters, kept)


def _layer(key: str) -> str:
    """The layer that a parameter belongs to."""
    return key.removesuffix(".weight").removesuffix(".bias").rpartition(".")[0]


def _load_kept(folder: Path) -> dict[str, dict[str, Tensor]]:
    """Read what was kept for rules, by its name and the layer's."""
    kept: dict[str, dict[str, Tensor]] = {}
    for name, file in KEPT.items():
        if (folder / file).exists():
            groups = TensorFile(folder / file).read_all()
            kept[name] = {
                layer: value for group, value in groups.items() for layer in group.split(",")
            }
    return kept
