"""The files of an adapter: a folder that stock peft loads, and the parameters before training."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

from safetensors.torch import save as to_bytes
from torch import Tensor, nn

from perdure.errors import CheckpointError
from perdure.models import adapters
from perdure.models.adapters import Adapter
from perdure.storage.tensors import Stored, TensorFile

PREFIX = "base_model.model."
"""The prefix of all parameter names in the file.

peft saves names as seen from its wrapper, in which the model is `base_model.model`.
"""
CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
START = "start.safetensors"
KEPT = {"inputs": "inputs.safetensors"}
"""The file names of the values that adapters store for merging rules, by value name."""
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
"""For each parameter, the dimension whose size is the module's rank; -1 if there is none."""
MAY_LACK = "full_bias"
"""The parameter that may be missing, because not every layer has a bias."""


def contents(
    adapter: Adapter,
    *,
    base: str,
    head: tuple[str, nn.Linear] | None,
    task_type: str | None = None,
) -> dict[str, bytes]:
    """Return the files of an adapter as bytes, by name; empty if the method has no module.

    The files under `adapter/` form a folder that `peft.PeftModel.from_pretrained` loads.
    `start.safetensors` contains the parameters before training.

    Parameters
    ----------
    base
        The pre-trained model, as the PEFT configuration names it.
    head
        The name and the layer of the task's head. peft loads it from `modules_to_save`,
        so the stock classification model returns the task's logits.
    task_type
        The `task_type` in the PEFT configuration; None leaves it unset.
    """
    if adapter.config is None:
        return {}
    config = adapter.config.to_dict()
    config |= {"base_model_name_or_path": base, "inference_mode": True}
    config["task_type"] = task_type
    tensors: dict[str, Tensor] = {}
    for name, value in adapter.parameters.items():
        tensors[PREFIX + name] = value.contiguous()  # safetensors refuses views
    if head:
        name, layer = head
        config["modules_to_save"] = [name]
        for key, value in layer.state_dict().items():
            tensors[f"{PREFIX}{name}.{key}"] = value.detach().cpu()
    files = {
        f"adapter/{CONFIG}": _config_json(config),
        f"adapter/{WEIGHTS}": to_bytes(tensors, metadata={"format": "pt"}),
        START: to_bytes(adapter.start),
    }
    for name, by_layer in adapter.kept.items():
        files[KEPT[name]] = to_bytes(_shared(by_layer))
    return files


def _config_json(config: Mapping[str, object]) -> bytes:
    """Return a peft configuration as JSON, in the form that `save_pretrained` writes."""
    plain = {}
    for key, value in config.items():
        # The order of a set differs between processes; sorted, the file always has the same bytes.
        plain[key] = sorted(value) if isinstance(value, set) else value
    return json.dumps(plain, indent=2, sort_keys=True, default=str).encode()


def _shared(by_layer: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return each tensor once, under the comma-separated names of all layers that share it."""
    # By identity: layers with the same input, such as query and value, share one tensor object.
    layers_of: dict[int, list[str]] = {}
    for name, value in by_layer.items():
        layers_of.setdefault(id(value), []).append(name)
    return {",".join(layers): by_layer[layers[0]] for layers in layers_of.values()}


def load(folder: Path, name: str, rank: int | None = None) -> Adapter:
    """Load an adapter from the files that `contents` returns.

    The shapes in the headers are compared with the configuration before any tensor is read.

    Parameters
    ----------
    folder
        The PEFT folder. The other files are in its parent folder.
    name
        The task's name.
    rank
        The method's rank, if it is known. The adapter must have this rank or a multiple
        of it, because some methods let the rank grow.

    Raises
    ------
    CheckpointError
        A file is missing or damaged, or the files do not match each other.
    """
    start = TensorFile(folder.parent / START)
    weights = TensorFile(folder / WEIGHTS)
    layers = {_layer(key) for key in start.tensors}
    config = adapters.config_from(folder / CONFIG, layers)
    width = adapters.width_of(config)
    if width and rank and width % rank:
        path = folder / CONFIG
        raise CheckpointError(f"`{path}` has rank {width}, but the recipe says {rank}.")
    for key, stored in start.tensors.items():
        if not _fits(key, stored, weights.tensors.get(PREFIX + key), width):
            raise CheckpointError(
                f"`{key}` in `{start.path}` ({stored.dtype}, shape {stored.shape}) does not fit "
                f"`{folder / CONFIG}` (rank {width}) or `{weights.path}`."
            )
    _check_complete(start, layers, adapters.prefix_of(config))
    # Only these, because the file may also contain a head.
    parameters = {key: weights.read(PREFIX + key) for key in start.tensors}
    kept = _load_kept(folder.parent)
    _check_inputs(folder.parent / KEPT["inputs"], kept.get("inputs", {}), start)
    return Adapter(name, config, start.read_all(), parameters, kept)


def _fits(key: str, start: Stored, trained: Stored | None, width: int | None) -> bool:
    """Return True if a parameter has the expected type, shape and rank.

    The parameter must be stored as F32, with the same shape before and after training.
    """
    dimension = _rank_dimension(key)
    if dimension is None or trained is None or trained.shape != start.shape:
        return False
    if {start.dtype, trained.dtype} != {"F32"}:
        return False
    # A slice, because the shape in a damaged file may have too few dimensions.
    return dimension < 0 or start.shape[dimension : dimension + 1] == (width,)


def _rank_dimension(key: str) -> int | None:
    """Return the dimension listed in `MIDDLE` for a parameter; None if the parameter is unknown."""
    for ending, dimension in MIDDLE.items():
        if key.endswith(ending):
            return dimension
    return None


def _check_complete(start: TensorFile, layers: Iterable[str], prefix: str) -> None:
    """Check that every layer has all module parameters whose names begin with `prefix`."""
    endings = [name for name in MIDDLE if name.startswith(prefix) and name != MAY_LACK]
    missing = []
    for layer in layers:
        for ending in endings:
            if f"{layer}.{ending}" not in start:
                missing.append(f"{layer}.{ending}")
    if missing:
        raise CheckpointError(f"`{start.path}` has no `{min(missing)}`.")


def _check_inputs(path: Path, inputs: Mapping[str, Tensor], start: TensorFile) -> None:
    """Check that E[x xᵀ] of each layer's input x has the width of the layer's LoRA matrix A."""
    for layer, value in inputs.items():
        # A is (rank, inputs).
        down = start.tensors.get(f"{layer}.lora_A.weight")
        if down is None or value.shape != (down.shape[1], down.shape[1]):
            raise CheckpointError(
                f"`{path}`: `{layer}` ({list(value.shape)}) does not fit the adapter."
            )


def _layer(key: str) -> str:
    """Return the name of the layer that a parameter belongs to."""
    # `full_weight` is a parameter of the layer itself; the others belong to a submodule.
    return key.removesuffix(".weight").removesuffix(".bias").rpartition(".")[0]


def _load_kept(folder: Path) -> dict[str, dict[str, Tensor]]:
    """Read the values stored for merging rules: for each name, a tensor for each layer."""
    kept: dict[str, dict[str, Tensor]] = {}
    for name, file in KEPT.items():
        if not (folder / file).exists():
            continue
        by_layer: dict[str, Tensor] = {}
        for layers, value in TensorFile(folder / file).read_all().items():
            # `_shared` wrote the names of all layers that share the tensor.
            by_layer.update(dict.fromkeys(layers.split(","), value))
        kept[name] = by_layer
    return kept
