"""A PEFT folder as a value, read as JSON and safetensors without peft.

LoRA adds s B A to W, with s = alpha / r (or alpha / sqrt(r), rsLoRA); rank and alpha may differ by
layer. Any other kind of adapter is refused, with a message that gives the reason.
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

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
PICKLE = "adapter_model.bin"
PREFIX = "base_model.model."
# Larger numbers are taken for damage: ranks and alphas in use are a million times smaller.
LARGEST = 1e9
# Initializations (`init_lora_weights`) that leave W as it was. Others (pissa, olora, corda, loftq,
# lora_ga) subtract a part of it, which the base model on disk still has.
KEEPS_BASE = ("gaussian", "eva", "orthogonal", "mica")
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
# Settings that leave the sum W + s B A as it is, or that are read here. A setting that is neither
# here nor in `REFUSED` is newer than this table, and warned about.
HARMLESS = {
    "alpha_pattern",
    "auto_mapping",
    "base_model_name_or_path",
    "bias",
    "corda_config",
    "ensure_weight_tying",
    "eva_config",
    "exclude_modules",
    "fan_in_fan_out",
    "inference_mode",
    "init_lora_weights",
    "layers_pattern",
    "layers_to_transform",
    "loftq_config",
    "lora_alpha",
    "lora_dropout",
    "lora_ga_config",
    "megatron_config",
    "megatron_core",
    "modules_to_save",
    "peft_type",
    "peft_version",
    "qalora_group_size",
    "r",
    "rank_pattern",
    "revision",
    "runtime_config",
    "target_modules",
    "target_parameters",
    "task_type",
    "use_rslora",
    "velora_config",
}
# `LAYER.lora_A.weight`; for embeddings `LAYER.lora_embedding_A`. peft leaves out the name of the
# adapter that it has in memory (`LAYER.lora_A.default.weight`), but other tools write it.
FACTOR = re.compile(
    r"(?P<layer>.+)\.lora_(?P<letter>(?:embedding_)?[AB])"
    r"(?:\.(?P<adapter>[^.]+))??(?:\.(?P<kind>weight|bias))?"
)
SAVED = re.compile(r"(?P<module>.+?)\.modules_to_save\.(?:[^.]+\.)?(?P<parameter>.+)")


@dataclass(frozen=True)
class Factors:
    """The change of one layer: s B A, with s in B. For an embedding it has a row for each token.

    Attributes
    ----------
    file, keys
        The file with A and B, and their names in it. They are read on demand and not kept.
    scale
        s: alpha / rank, or alpha / √rank.
    shape
        The shape of the change; a convolution's kernel is flattened.
    alpha
        The alpha that the adapter states for the layer's own rank.
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
        key_A, key_B = self.keys
        A = whole(self.file, key_A).float().flatten(1)
        B = whole(self.file, key_B).float().flatten(1)
        B = self.scaled(B)
        if self.embedding:
            # peft looks rows of Aᵀ up: the change of the table (tokens × width) is (B A)ᵀ = Aᵀ Bᵀ.
            return LowRank(A.T, B.T)
        return LowRank(B, A)

    def scaled(self, B: Tensor) -> Tensor:
        """Return s B.

        Raises
        ------
        CheckpointError
            s B is not finite.
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
        The change of each layer, by its name in the model that the adapter was trained on.
    wrapped
        The names of A and B for single parameters (`target_parameters`), by the name that peft
        gives to the wrapper around the module of the parameter. The wrapper of each further
        parameter of that module has another `.base_layer` in its name.
    targets
        The layers that the configuration names.
    untargeted
        Layers with factors that the configuration does not name: peft leaves them out.
    saved
        The tensors of modules that were trained whole (`modules_to_save`), read on demand.
    copies
        Other whole tensors, read on demand: peft sometimes adds the embeddings of the base model.
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
        """The model that the adapter names as its base; empty if it names none."""
        return str(self.config.get("base_model_name_or_path") or "")


def described(factors: Iterable[Factors]) -> str:
    """Return the ranks and alphas, as text."""
    pairs = {(layer.rank, layer.alpha) for layer in factors}
    texts: list[str] = []
    for rank, alpha in sorted(pairs):
        texts.append(f"rank {rank}, alpha {alpha:g}")
    return ", ".join(texts)


def read(source: str | Path) -> PeftFolder:
    """Read a PEFT folder, given as a path or as a hub id.

    Raises
    ------
    CheckpointError
        It is not a PEFT folder, is damaged, or does anything other than adding B A to weights.
    """
    folder = find(source)
    if not (folder / CONFIG).exists():
        _look_below(folder)
    config = read_json(inside(folder, CONFIG))
    _check_config(folder, config)
    if not (folder / WEIGHTS).exists() and (folder / PICKLE).exists():
        raise CheckpointError(
            f"`{folder / PICKLE}` is not read: unpickling can run any code. Load the adapter "
            "where you trust it, and save it with `save_pretrained` (safetensors)."
        )
    file = TensorFile(inside(folder, WEIGHTS))
    # From here on only headers are read: the shapes are checked against the base's before values
    # take memory, because a header may claim any size.
    targets = Targets(config, str(folder / CONFIG))
    keys, saved, copies = _sorted(file, targets)
    if not keys:
        raise CheckpointError(f"`{file.path}` holds no LoRA: it has no tensor `….lora_A.weight`.")

    untargeted = _untargeted(keys, targets)
    wrapped: dict[str, tuple[str, str]] = {}
    if targets.parameters:
        # A wrapper of single parameters has factors like a layer, but `target_modules` does not
        # name it. Which parameters are meant is seen later, in the model (`experts`).
        for layer in untargeted:
            wrapped[layer] = _keys(file, layer, keys.pop(layer))
        untargeted = []

    factors: dict[str, Factors] = {}
    for layer, layer_keys in keys.items():
        if layer not in untargeted:
            factors[layer] = _factors(file, layer, layer_keys, targets)
    if not factors and not wrapped:
        raise CheckpointError(
            f"`{file.path}` has factors of other layers (`{untargeted[0]}`, …) "
            f"than `target_modules` in `{CONFIG}` names."
        )
    return PeftFolder(
        folder=folder,
        name=_name(folder),
        config=config,
        file=file,
        factors=factors,
        wrapped=wrapped,
        saved=saved,
        copies=copies,
        targets=targets,
        untargeted=untargeted,
    )


def _untargeted(layers: Iterable[str], targets: Targets) -> list[str]:
    """Return the layers that the configuration does not name."""
    unnamed = [layer for layer in layers if targets.named(layer) is False]
    if targets.config.get("ensure_weight_tying"):
        # peft adds the layer that is tied to one that is named. It has no number in its name, as
        # the layers of blocks have.
        unnamed = [layer for layer in unnamed if _has_number(layer)]
    return unnamed


def _has_number(layer: str) -> bool:
    return any(name.isdigit() for name in layer.split("."))


def _look_below(folder: Path) -> None:
    """Name the adapters in subfolders, where peft saves all adapters but the first.

    Raises
    ------
    CheckpointError
        There are adapters in subfolders.
    """
    below = sorted(path.parent.name for path in folder.glob(f"*/{CONFIG}"))
    if not below:
        return
    message = (
        f"`{folder}` has no `{CONFIG}`, but there are adapters in its subfolders: "
        f"give `{folder / below[0]}`"
    )
    if len(below) > 1:
        message += f", or another of {', '.join(below)}"
    raise CheckpointError(f"{message}.")


def _sorted(
    file: TensorFile, targets: Targets
) -> tuple[dict[str, dict[str, str]], OnDemand[Tensor], OnDemand[Tensor]]:
    """Sort the tensors of an adapter's file.

    Returns
    -------
    The names of the factors, by layer and letter; the modules that were trained whole; and other
    whole tensors.
    """
    keys: dict[str, dict[str, str]] = {}
    saved: dict[str, Callable[[], Tensor]] = {}
    copies: dict[str, Callable[[], Tensor]] = {}
    for key in file.tensors:
        name, role = _role(file, key.removeprefix(PREFIX))
        if role == "original":
            continue
        if role == "whole":
            tensors = saved if _is_saved(name, targets) else copies
            tensors[name] = functools.partial(whole, file, key)
            continue
        layer_keys = keys.setdefault(name, {})
        if role in layer_keys:
            raise CheckpointError(
                f"`{file.path}` holds two adapters for `{name}`. Save them into a folder each."
            )
        layer_keys[role] = key
    return keys, OnDemand(saved), OnDemand(copies)


def _name(folder: Path) -> str:
    """Return the folder's name; in a run of perdure (`00-TASK/adapter`) the task's."""
    folder = folder.resolve()
    if folder.name != "adapter":
        return folder.name
    return re.sub(r"^\d+-", "", folder.parent.name)


def _check_config(folder: Path, config: Mapping[str, object]) -> None:
    """Refuse an adapter that does anything other than adding B A to weights."""
    path = folder / CONFIG
    kind = config.get("peft_type")
    if kind != "LORA":
        raise CheckpointError(
            f"`{path}`: `peft_type` is {kind!r}. Only LoRA (`LORA`) is a change of weights B A."
        )
    for key, why in REFUSED.items():
        if config.get(key):
            raise CheckpointError(
                f"`{path}`: `{key}` is {str(config[key])[:80]}, and {why}. It cannot be merged."
            )
    bias = config.get("bias", "none")
    if bias != "none":
        raise CheckpointError(
            f"`{path}`: `bias` is {bias!r}: biases were trained too. Only `none` is merged."
        )
    start = config.get("init_lora_weights", True)
    # peft's own initialization is None or True; False, for its tests, is random, but leaves W too.
    is_switch = start is None or isinstance(start, bool)
    is_named = isinstance(start, str) and start in KEEPS_BASE
    if not is_switch and not is_named:
        raise CheckpointError(
            f"`{path}`: `init_lora_weights` is {start!r}, which changed the base model before "
            "training. Convert the adapter: peft's "
            "`save_pretrained(…, path_initial_model_for_weight_conversion=…)`."
        )
    unknown = sorted(key for key, value in config.items() if value and key not in HARMLESS)
    if unknown:
        warnings.warn(
            f"`{path}`: `{unknown[0]}` is not known here, and is ignored.",
            PerdureWarning,
            stacklevel=3,
        )


def _role(file: TensorFile, key: str) -> tuple[str, str]:
    """Return the layer or tensor that a key belongs to, and its role there.

    The role is the letter of a factor (`A`, `B`, `embedding_A`, `embedding_B`), `whole` for a
    tensor that was trained whole or copied, or `original` for the state before training.
    """
    factor = FACTOR.fullmatch(key)
    if factor and factor["kind"] != "bias":
        return factor["layer"], factor["letter"]
    if factor or ".lora_" in key or ".trainable_tokens_" in key:
        raise CheckpointError(
            f"`{file.path}`: `{key}` is no factor of a LoRA: it acts in another way than B A."
        )
    if ".original_module." in key:
        return key, "original"
    saved = SAVED.fullmatch(key)
    if saved:
        return f"{saved['module']}.{saved['parameter']}", "whole"
    return key.replace(".base_layer.", "."), "whole"


def _is_saved(name: str, targets: Targets) -> bool:
    return any(f".{module}." in f".{name}" for module in targets.saved_modules)


def whole(file: TensorFile, key: str) -> Tensor:
    """Read a tensor of an adapter.

    Raises
    ------
    CheckpointError
        The tensor is not of a floating type, or not finite.
    """
    dtype = file.tensors[key].dtype
    if dtype not in FLOATS:
        raise CheckpointError(
            f"`{key}` in `{file.path}` has the type {dtype}; allowed: {', '.join(FLOATS)}."
        )
    value = file.read(key)
    # The computations that follow are in single precision, where a large double is infinite.
    if not is_finite(value.float()):
        raise CheckpointError(
            f"`{key}` in `{file.path}` holds values that are not finite (NaN or Inf)."
        )
    return value


def _keys(file: TensorFile, layer: str, keys: Mapping[str, str]) -> tuple[str, str]:
    """Return the names of A and B in the file, given the names of a layer's factors by letter."""
    letters = ("A", "B")
    if "embedding_A" in keys or "embedding_B" in keys:
        letters = ("embedding_A", "embedding_B")
    if set(keys) != set(letters):
        raise CheckpointError(
            f"`{file.path}`: `{layer}` has the factors {sorted(keys)}, but needs {list(letters)}."
        )
    A, B = letters
    return keys[A], keys[B]


def _factors(file: TensorFile, layer: str, keys: Mapping[str, str], targets: Targets) -> Factors:
    """Describe a layer's factors, after a check of their shapes; the values are read later."""
    key_A, key_B = _keys(file, layer, keys)
    A = file.tensors[key_A].shape
    B = file.tensors[key_B].shape
    rank, alpha, scale = numbers(targets, layer)
    # A convolution has A of rank × in × height × width, and B of out × rank × 1 × 1.
    are_matrices = len(A) >= 2 and len(A) == len(B)
    is_pointwise = math.prod(B[2:]) == 1
    have_rank = A[:1] == (rank,) and B[1:2] == (rank,)
    are_empty = not math.prod(A) or not math.prod(B)
    if are_empty or not (are_matrices and is_pointwise and have_rank):
        raise CheckpointError(
            f"`{file.path}`: the factors of `{layer}` have the shapes {A} and {B}, which "
            f"`{CONFIG}` (rank {rank:g}) does not fit."
        )
    height = math.prod(B[:1])
    width = math.prod(A[1:])
    embedding = "embedding_A" in keys
    return Factors(
        file=file,
        keys=(key_A, key_B),
        scale=scale,
        shape=(width, height) if embedding else (height, width),
        rank=rank,
        alpha=alpha,
        embedding=embedding,
    )


def numbers(targets: Targets, layer: str) -> tuple[int, float, float]:
    """Return a layer's rank, its alpha, and its scale s: alpha / rank, or alpha / √rank.

    Raises
    ------
    CheckpointError
        The rank is no positive whole number, or alpha is no finite number.
    """
    rank = _number(targets, "r", layer, "rank_pattern")
    alpha = _number(targets, "lora_alpha", layer, "alpha_pattern")
    divisor = rank
    if targets.config.get("use_rslora"):
        divisor = rank**0.5
    return int(rank), alpha, alpha / divisor


def _number(targets: Targets, key: str, layer: str, pattern: str) -> float:
    """Return the rank or alpha of a layer: from the first pattern that fits, or the general one."""
    # As in peft, a pattern for this layer comes before the setting for all layers.
    value = targets.value(pattern, layer)
    if value is None:
        value = targets.config.get(key, 8)  # peft's default for both
    # `type`, not `isinstance`: for Python `true` is a number. NaN fails the comparison.
    if type(value) is int or type(value) is float:
        is_rank = type(value) is int and value > 0
        if abs(value) <= LARGEST and (key != "r" or is_rank):
            return value
    raise CheckpointError(
        f"`{targets.where}`: `{key}` of `{layer}` is {value!r}, which is no such number."
    )
