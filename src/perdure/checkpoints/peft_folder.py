"""A PEFT folder as a value, read as JSON and safetensors without peft: a LoRA's factors by layer, and saved modules.

What LoRA adds to W is s B A with s = alpha / r (or alpha / sqrt(r), rsLoRA); rank and alpha may differ by layer. What
acts in another way than that is refused by name.
"""

import functools
import math
import re
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from perdure.checkpoints.base import find, inside
from perdure.checkpoints.targets import Targets
from perdure.errors import CheckpointError, PerdureWarning
from perdure.storage.files import read_json
from perdure.storage.tensors import FLOATS, TensorFile, is_finite
from perdure.vectors.task_vector import LowRank, OnDemand

CONFIG, WEIGHTS, PICKLE = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"
PREFIX = "base_model.model."
# Starts that leave W as it was. Others (pissa, olora, corda, loftq, lora_ga) take a part of it away.
KEEPS_BASE = (None, True, False, "gaussian", "eva", "orthogonal", "mica")
REFUSED = {
    "use_dora": "DoRA scales the rows of W by their norm: it is no sum of W and B A",
    "lora_bias": "it adds a bias",
    "layer_replication": "it copies layers of the model",
    "trainable_token_indices": "it changes single rows of the embeddings",
    "alora_invocation_tokens": "an activated LoRA acts on some tokens only",
    "use_qalora": "QALoRA pools the layer's inputs",
    "use_bdlora": "its factors are block-diagonal",
    "arrow_config": "Arrow routes between adapters",
    "monteclora_config": "its weights are random variables",
    "kasa_config": "KaSA scales the singular values of W",
}
HARMLESS = {
    *(
        "alpha_pattern",
        "auto_mapping",
        "base_model_name_or_path",
        "bias",
        "corda_config",
        "ensure_weight_tying",
    ),
    *(
        "eva_config",
        "exclude_modules",
        "fan_in_fan_out",
        "inference_mode",
        "init_lora_weights",
        "layers_pattern",
    ),
    *(
        "layers_to_transform",
        "loftq_config",
        "lora_alpha",
        "lora_dropout",
        "lora_ga_config",
        "megatron_config",
    ),
    *(
        "megatron_core",
        "modules_to_save",
        "peft_type",
        "peft_version",
        "qalora_group_size",
        "r",
        "rank_pattern",
    ),
    *(
        "revision",
        "runtime_config",
        "target_modules",
        "target_parameters",
        "task_type",
        "use_rslora",
    ),
    "velora_config",
}
FACTOR = re.compile(r"(.+)\.lora_(embedding_)?([AB])(?:\.([^.]+))??(?:\.(weight|bias))?")
SAVED = re.compile(r"(.+?)\.modules_to_save\.(?:[^.]+\.)?(.+)")


@dataclass(frozen=True)
class Factors:
    """The change of one layer: s B A, with s in B; for an embedding its rows are those of the table.

    Attributes
    ----------
    file, keys
        Where A and B lie. They are read when they are wanted, and not kept.
    scale
        s: alpha / rank, or alpha / √rank.
    shape
        Of the change; a convolution's kernel is flattened.
    alpha
        As the adapter states it, for the layer's own rank.
    """

    file: TensorFile
    keys: tuple[str, str]
    scale: float
    shape: tuple[int, int]
    rank: int
    alpha: float
    embedding: bool

    @property
    def change(self) -> LowRank:
        """The factors, in float32.

        Raises
        ------
        CheckpointError
            They are not finite.
        """
        A, B = (whole(self.file, key).float().flatten(1) for key in self.keys)
        B = self.scaled(B)
        return LowRank(A.T, B.T) if self.embedding else LowRank(B, A)

    def scaled(self, B: Tensor) -> Tensor:
        """Return s B.

        Raises
        ------
        CheckpointError
            It is not finite.
        """
        B = B * self.scale
        if not is_finite(B):
            raise CheckpointError(
                f"`{self.keys[1]}` in `{self.file.path}` is not finite times alpha {self.alpha:g}."
            )
        return B


@dataclass(frozen=True)
class PeftFolder:
    """A LoRA adapter.

    Attributes
    ----------
    factors
        By the name of the layer, as the model that it was trained on calls it.
    wrapped
        Where A and B of single parameters (`target_parameters`) lie, by the name that peft gives the wrapper around
        the module that has the parameter: another `.base_layer` for each further parameter of it.
    targets
        What the configuration says of layers.
    untargeted
        Layers whose factors the file holds although the configuration does not name them: peft leaves them out.
    saved
        The tensors of modules that were trained whole (`modules_to_save`).
    copies
        Other whole tensors that lie beside: peft adds the embeddings of the base model in some cases. Like the saved
        ones they are read when they are wanted.
    """

    folder: Path
    name: str
    config: Mapping[str, Any]
    file: TensorFile
    factors: Mapping[str, Factors]
    wrapped: Mapping[str, tuple[str, str]]
    saved: Mapping[str, Tensor]
    copies: Mapping[str, Tensor]
    targets: Targets
    untargeted: Sequence[str]

    @property
    def base(self) -> str:
        """The model that it says it was trained on; empty if it does not say."""
        return str(self.config.get("base_model_name_or_path") or "")


def described(factors: Iterable[Factors]) -> str:
    """Return the ranks and alphas, as a text."""
    pairs = sorted({(layer.rank, layer.alpha) for layer in factors})
    return ", ".join(f"rank {rank}, alpha {alpha:g}" for rank, alpha in pairs)


def read(source: str | Path) -> PeftFolder:
    """Read a PEFT folder (or one on the hub).

    Raises
    ------
    CheckpointError
        It is none, is damaged, or acts in another way than adding B A to weights.
    """
    folder = find(source)
    if not (folder / CONFIG).exists():
        _look_below(folder)
    config = read_json(inside(folder, CONFIG))
    _check_config(folder, config)
    if not (folder / WEIGHTS).exists() and (folder / PICKLE).exists():
        raise CheckpointError(
            f"`{folder / PICKLE}` is not read: unpickling can run any code. Load the adapter where you trust it, and "
            "save it with `save_pretrained` (safetensors)."
        )
    file = TensorFile(inside(folder, WEIGHTS))
    targets = Targets(config, str(folder / CONFIG))
    parts, saved, copies = _sorted(file, config)
    if not parts:
        raise CheckpointError(f"`{file.path}` holds no LoRA: it has no tensor `….lora_A.weight`.")
    unnamed = [layer for layer in parts if targets.named(layer) is False]
    if config.get("ensure_weight_tying"):  # peft adds the layer that is tied to one that is named
        unnamed = [layer for layer in unnamed if any(part.isdigit() for part in layer.split("."))]
    if targets.parameters:
        wrapped = {layer: _keys(file, layer, parts.pop(layer)) for layer in unnamed}
        unnamed = []
    else:
        wrapped = {}
    factors = {
        layer: _factors(file, layer, parts[layer], targets)
        for layer in parts
        if layer not in unnamed
    }
    if not factors and not wrapped:
        raise CheckpointError(
            f"`{file.path}` has factors of other layers (`{unnamed[0]}`, …) than `target_modules` in `{CONFIG}` names."
        )
    return PeftFolder(
        folder, _name(folder), config, file, factors, wrapped, saved, copies, targets, unnamed
    )


def _look_below(folder: Path) -> None:
    """Name the adapters in folders of this one, which has none: peft saves all but the first one so."""
    below = sorted(path.parent.name for path in folder.glob(f"*/{CONFIG}"))
    if below:
        raise CheckpointError(
            f"`{folder}` has no `{CONFIG}`, but there are adapters in folders of it: give `{folder / below[0]}`"
            + (f", or another of {', '.join(below)}." if len(below) > 1 else ".")
        )


def _sorted(
    file: TensorFile, config: Mapping[str, Any]
) -> tuple[dict[str, dict[str, str]], OnDemand[Tensor], OnDemand[Tensor]]:
    """The tensors of an adapter's file: factors by layer and letter, modules trained whole, and other whole ones."""
    parts: dict[str, dict[str, str]] = {}
    saved: dict[str, Callable[[], Tensor]] = {}
    copies: dict[str, Callable[[], Tensor]] = {}
    for key in file.tensors:
        layer, part = _place(file, key.removeprefix(PREFIX))
        if part in ("A", "B", "embedding_A", "embedding_B"):
            if part in parts.setdefault(layer, {}):
                raise CheckpointError(
                    f"`{file.path}` holds two adapters for `{layer}`. Save them into a folder each."
                )
            parts[layer][part] = key
        elif part != "original":
            (saved if _is_saved(layer, config) else copies)[layer] = functools.partial(
                whole, file, key
            )
    return parts, OnDemand(saved), OnDemand(copies)


def _name(folder: Path) -> str:
    """The folder's name; in a run of perdure, the task's."""
    folder = folder.resolve()
    return re.sub(r"^\d+-", "", folder.parent.name) if folder.name == "adapter" else folder.name


def _check_config(folder: Path, config: Mapping[str, Any]) -> None:
    kind, start, path = (
        config.get("peft_type"),
        config.get("init_lora_weights", True),
        folder / CONFIG,
    )
    if kind != "LORA":
        raise CheckpointError(
            f"`{path}`: `peft_type` is {kind!r}. Only LoRA (`LORA`) is a change of weights B A."
        )
    for key, why in REFUSED.items():
        if config.get(key):
            raise CheckpointError(
                f"`{path}`: `{key}` is {str(config[key])[:80]}, and {why}. It cannot be merged."
            )
    if config.get("bias", "none") != "none":
        raise CheckpointError(
            f"`{path}`: `bias` is {config['bias']!r}: biases were trained too. Only `none` is merged."
        )
    if not any(
        start is allowed or (isinstance(start, str) and start == allowed) for allowed in KEEPS_BASE
    ):
        raise CheckpointError(
            f"`{path}`: `init_lora_weights` is {start!r}, which changed the base model before training. Convert the "
            "adapter: peft's `save_pretrained(…, path_initial_model_for_weight_conversion=…)`."
        )
    new = sorted(key for key, value in config.items() if value and key not in HARMLESS)
    if new:
        warnings.warn(
            f"`{path}`: `{new[0]}` is not known here, and is passed over.",
            PerdureWarning,
            stacklevel=3,
        )


def _place(file: TensorFile, key: str) -> tuple[str, str]:
    """What a tensor is part of, and which part: a factor's letter, `original`, or nothing."""
    found = FACTOR.fullmatch(key)
    if found and found[5] != "bias":
        return found[1], (found[2] or "") + found[3]
    if found or ".lora_" in key or ".trainable_tokens_" in key:
        raise CheckpointError(
            f"`{file.path}`: `{key}` is no factor of a LoRA: it acts in another way than B A."
        )
    if ".original_module." in key:  # what a module was that was trained whole
        return key, "original"
    saved = SAVED.fullmatch(key)
    return (f"{saved[1]}.{saved[2]}" if saved else key.replace(".base_layer.", ".")), ""


def _is_saved(name: str, config: Mapping[str, Any]) -> bool:
    return any(f".{module}." in f".{name}" for module in config.get("modules_to_save") or ())


def whole(file: TensorFile, key: str) -> Tensor:
    """Read a tensor of an adapter.

    Raises
    ------
    CheckpointError
        It is of a type that is no number with a point, or not finite.
    """
    if file.tensors[key].dtype not in FLOATS:
        raise CheckpointError(
            f"`{key}` in `{file.path}` has the type {file.tensors[key].dtype}; allowed: {', '.join(FLOATS)}."
        )
    value = file.read(key)
    if not is_finite(
        value.float()
    ):  # a double may be too great for the single precision that follows
        raise CheckpointError(
            f"`{key}` in `{file.path}` holds values that are not finite (NaN or Inf)."
        )
    return value


def _keys(file: TensorFile, layer: str, parts: Mapping[str, str]) -> tuple[str, str]:
    """The names of A and B."""
    embedding = any(part.startswith("embedding_") for part in parts)
    letters = ("embedding_A", "embedding_B") if embedding else ("A", "B")
    if set(parts) != set(letters):
        raise CheckpointError(
            f"`{file.path}`: `{layer}` has the factors {sorted(parts)}, but needs {list(letters)}."
        )
    return parts[letters[0]], parts[letters[1]]


def _factors(file: TensorFile, layer: str, parts: Mapping[str, str], targets: Targets) -> Factors:
    keys = _keys(file, layer, parts)
    embedding = "embedding_A" in parts
    A, B = (file.tensors[key].shape for key in keys)
    rank, alpha, scale = numbers(targets, layer)
    fits = len(A) >= 2 and len(A) == len(B) and A[0] == B[1] and all(n == 1 for n in B[2:])
    if not fits or A[:1] != (rank,) or not math.prod(A) * math.prod(B):
        raise CheckpointError(
            f"`{file.path}`: the factors of `{layer}` have the shapes {A} and {B}, which "
            f"`{CONFIG}` (rank {rank:g}) does not fit."
        )
    width, height = math.prod(A[1:]), math.prod(B[:1])
    shape = (width, height) if embedding else (height, width)
    return Factors(file, keys, scale, shape, rank, alpha, embedding)


def numbers(targets: Targets, layer: str) -> tuple[int, float, float]:
    """Return a layer's rank, its alpha, and its scale s: alpha / rank, or alpha / √rank.

    Raises
    ------
    CheckpointError
        One of them is no such number.
    """
    rank = _number(targets, "r", layer, "rank_pattern")
    alpha = _number(targets, "lora_alpha", layer, "alpha_pattern")
    return int(rank), alpha, alpha / (rank**0.5 if targets.config.get("use_rslora") else rank)


def _number(targets: Targets, key: str, layer: str, pattern: str) -> float:
    """A setting of a layer, by a pattern or the usual one."""
    value = targets.value(pattern, layer)
    if value is None:
        value = targets.config.get(key, 8)
    whole, fraction = type(value) is int, type(value) is float and math.isfinite(value)
    if not (whole and value > 0 if key == "r" else whole or fraction) or abs(value) > 1e9:
        raise CheckpointError(
            f"`{targets.where}`: `{key}` of `{layer}` is {value!r}, no such number."
        )
    return value
