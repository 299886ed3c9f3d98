"""PEFT folders, read as JSON and safetensors without using peft.

LoRA adds s B A to W, where s = alpha / r (or alpha / sqrt(r) for rsLoRA). The rank r and
alpha may differ between layers. Adapters that work differently are rejected with an error
that says why.
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
# Larger numbers are considered damage, because real ranks and alphas are a million times smaller.
LARGEST = 1e9
# Initializations (`init_lora_weights`) that leave W unchanged. Others (pissa, olora,
# corda, loftq, lora_ga) subtract a part of W, which the base model on disk still
# contains.
KEEPS_BASE = ("gaussian", "eva", "orthogonal", "mica")
REFUSED = {
    "use_dora": "DoRA rescales the rows of W, so the result is not a sum of W and B A",
    "lora_bias": "it adds a bias",
    "layer_replication": "it copies layers of the model",
    "trainable_token_indices": "it changes individual rows of the embeddings",
    "alora_invocation_tokens": "an activated LoRA acts only on some tokens",
    "use_qalora": "QALoRA pools the layer's inputs",
    "use_bdlora": "its factors are block-diagonal",
    "arrow_config": "Arrow routes between adapters",
    "monteclora_config": "its weights are random variables",
    "kasa_config": "KaSA scales the singular values of W",
}
# Settings that do not affect the sum W + s B A, or that are handled here. A setting that
# is in neither table is newer than these tables, and causes a warning.
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
# `LAYER.lora_A.weight`, or `LAYER.lora_embedding_A` for embeddings. In memory, peft's
# keys contain the adapter's name (`LAYER.lora_A.default.weight`). peft omits it on disk;
# other tools do not.
FACTOR = re.compile(
    r"(?P<layer>.+)\.lora_(?P<letter>(?:embedding_)?[AB])"
    r"(?:\.(?P<adapter>[^.]+))??(?:\.(?P<kind>weight|bias))?"
)
SAVED = re.compile(r"(?P<module>.+?)\.modules_to_save\.(?:[^.]+\.)?(?P<parameter>.+)")


@dataclass(frozen=True)
class Factors:
    """The change s B A that LoRA makes to a layer; for an embedding, it has one row per token.

    Attributes
    ----------
    file, keys
        The file that contains A and B, and their names in the file. They are read on
        demand, and not cached.
    scale
        The factor s, which is alpha / rank or alpha / √rank.
    shape
        The shape of the change, in which a convolution's kernel is flattened.
    alpha
        The alpha of this layer.
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
        """The change in float32, as factors s B and A.

        Raises
        ------
        CheckpointError
            The factors are not finite.
        """
        key_A, key_B = self.keys
        A = read_tensor(self.file, key_A).float().flatten(1)
        B = read_tensor(self.file, key_B).float().flatten(1)
        B = self.scaled(B)
        if self.embedding:
            # peft looks up rows of Aᵀ, so the change to the table (tokens × width) is Aᵀ Bᵀ.
            return LowRank(A.T, B.T)
        return LowRank(B, A)

    def scaled(self, B: Tensor) -> Tensor:
        """Return the factor B times the LoRA scale s.

        Raises
        ------
        CheckpointError
            s B is not finite.
        """
        B = B * self.scale
        if not is_finite(B):
            raise CheckpointError(
                f"`{self.keys[1]}` in `{self.file.path}`, scaled with alpha {self.alpha:g}, "
                "is not finite."
            )
        return B


@dataclass(frozen=True)
class PeftFolder:
    """A LoRA adapter on disk.

    Attributes
    ----------
    factors
        The change to each layer, by layer name in the model on which the adapter was trained.
    wrapped
        The names of A and B for individual parameters (`target_parameters`), by the name
        of the wrapper that peft puts around the parameter's module. If a module has
        several such parameters, the name of each inner wrapper has one more
        `.base_layer`.
    targets
        The layers that the configuration targets.
    untargeted
        Layers that have factors but are not targeted by the configuration; peft ignores them.
    saved
        The tensors of fully trained modules (`modules_to_save`), read on demand.
    copies
        Other full tensors, read on demand. For example, peft sometimes saves the
        embeddings of the base model.
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
        """The base model as named in the adapter's configuration, or an empty string."""
        return str(self.config.get("base_model_name_or_path") or "")


def described(factors: Iterable[Factors]) -> str:
    """Return a description of the distinct ranks and alphas, such as "rank 8, alpha 16"."""
    pairs = {(layer.rank, layer.alpha) for layer in factors}
    texts: list[str] = []
    for rank, alpha in sorted(pairs):
        texts.append(f"rank {rank}, alpha {alpha:g}")
    return ", ".join(texts)


def read(source: str | Path) -> PeftFolder:
    """Read a PEFT folder, given as a path or a hub id.

    Raises
    ------
    CheckpointError
        The folder is not a PEFT folder or is damaged, or the adapter does more than add B
        A to weights.
    """
    folder = find(source)
    if not (folder / CONFIG).exists():
        _check_subfolders(folder)
    config = read_json(inside(folder, CONFIG))
    _check_config(folder, config)
    if not (folder / WEIGHTS).exists() and (folder / PICKLE).exists():
        raise CheckpointError(
            f"`{folder / PICKLE}` is not read: unpickling can run arbitrary code. Load the adapter "
            "where you trust it, and save it with `save_pretrained` (safetensors)."
        )
    file = TensorFile(inside(folder, WEIGHTS))
    # Read only headers here. Shapes are compared with those of the base model before
    # values are loaded, because a header may claim any size.
    targets = Targets(config, str(folder / CONFIG))
    keys, saved, copies = _group_tensors(file, targets)
    if not keys:
        raise CheckpointError(f"`{file.path}` is not a LoRA: it has no tensor `….lora_A.weight`.")

    untargeted = _untargeted(keys, targets)
    wrapped: dict[str, tuple[str, str]] = {}
    if targets.parameters:
        # The wrapper of a parameter has factors like a layer, but is not in
        # `target_modules`. `experts` later uses the model to find the parameter to which
        # the factors belong.
        for layer in untargeted:
            wrapped[layer] = _keys(file, layer, keys.pop(layer))
        untargeted = []

    factors: dict[str, Factors] = {}
    for layer, layer_keys in keys.items():
        if layer not in untargeted:
            factors[layer] = _factors(file, layer, layer_keys, targets)
    if not factors and not wrapped:
        raise CheckpointError(
            f"`{file.path}` has factors only for layers (`{untargeted[0]}`, …) "
            f"that `target_modules` in `{CONFIG}` does not target."
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
    """Return those of the given layers that the configuration does not target."""
    untargeted = [layer for layer in layers if targets.named(layer) is False]
    if targets.config.get("ensure_weight_tying"):
        # peft adds the layer that is tied to a targeted one. Unlike the names of layers
        # in blocks, its name contains no number.
        untargeted = [layer for layer in untargeted if _has_number(layer)]
    return untargeted


def _has_number(layer: str) -> bool:
    return any(name.isdigit() for name in layer.split("."))


def _check_subfolders(folder: Path) -> None:
    """Check for adapters in subfolders, where peft saves all adapters except the first.

    Raises
    ------
    CheckpointError
        There are adapters in subfolders.
    """
    subfolders = sorted(path.parent.name for path in folder.glob(f"*/{CONFIG}"))
    if not subfolders:
        return
    message = (
        f"`{folder}` has no `{CONFIG}`, but there are adapters in its subfolders: "
        f"give `{folder / subfolders[0]}`"
    )
    if len(subfolders) > 1:
        message += f", or another of {', '.join(subfolders)}"
    raise CheckpointError(f"{message}.")


def _group_tensors(
    file: TensorFile, targets: Targets
) -> tuple[dict[str, dict[str, str]], OnDemand[Tensor], OnDemand[Tensor]]:
    """Group the tensors in an adapter's file by their roles.

    Returns
    -------
    The names of the factors, by layer and letter; the tensors of fully trained modules; and all
    other full tensors.
    """
    keys: dict[str, dict[str, str]] = {}
    saved: dict[str, Callable[[], Tensor]] = {}
    copies: dict[str, Callable[[], Tensor]] = {}
    for key in file.tensors:
        name, role = _role(file, key.removeprefix(PREFIX))
        if role == "original":
            continue
        if role == "full":
            tensors = saved if _is_saved(name, targets) else copies
            tensors[name] = functools.partial(read_tensor, file, key)
            continue
        layer_keys = keys.setdefault(name, {})
        if role in layer_keys:
            raise CheckpointError(
                f"`{file.path}` has two adapters for `{name}`. Save them to separate folders."
            )
        layer_keys[role] = key
    return keys, OnDemand(saved), OnDemand(copies)


def _name(folder: Path) -> str:
    """Return the name of a folder or, if it is in a run (`00-TASK/adapter`), the task name."""
    folder = folder.resolve()
    if folder.name != "adapter":
        return folder.name
    return re.sub(r"^\d+-", "", folder.parent.name)


def _check_config(folder: Path, config: Mapping[str, object]) -> None:
    """Raise if an adapter does more than add B A to weights."""
    path = folder / CONFIG
    kind = config.get("peft_type")
    if kind != "LORA":
        raise CheckpointError(
            f"`{path}`: `peft_type` is {kind!r}. Only LoRA (`LORA`) changes weights by B A."
        )
    for key, why in REFUSED.items():
        if config.get(key):
            raise CheckpointError(
                f"`{path}`: `{key}` is {str(config[key])[:80]}, and {why}. It cannot be merged."
            )
    bias = config.get("bias", "none")
    if bias != "none":
        raise CheckpointError(
            f"`{path}`: `bias` is {bias!r}, so biases were trained, too. Only `none` can be merged."
        )
    start = config.get("init_lora_weights", True)
    # None and True select peft's default initialization. False is a random initialization
    # for its tests, but does not change W, either.
    is_switch = start is None or isinstance(start, bool)
    is_named = isinstance(start, str) and start in KEEPS_BASE
    if not is_switch and not is_named:
        raise CheckpointError(
            f"`{path}`: `init_lora_weights` is {start!r}, which changed the base model before "
            "training. Convert the adapter with peft's "
            "`save_pretrained(…, path_initial_model_for_weight_conversion=…)`."
        )
    unknown = sorted(key for key, value in config.items() if value and key not in HARMLESS)
    if unknown:
        warnings.warn(
            f"`{path}`: `{unknown[0]}` is an unknown setting, and is ignored.",
            PerdureWarning,
            stacklevel=3,
        )


def _role(file: TensorFile, key: str) -> tuple[str, str]:
    """Return the name of the layer or full tensor that a key belongs to, and the key's role.

    The role is the letter of a factor (`A`, `B`, `embedding_A`, `embedding_B`), `full`
    for a fully trained or copied tensor, or `original` for a tensor as it was before
    training.
    """
    factor = FACTOR.fullmatch(key)
    if factor and factor["kind"] != "bias":
        return factor["layer"], factor["letter"]
    if factor or ".lora_" in key or ".trainable_tokens_" in key:
        raise CheckpointError(
            f"`{file.path}`: `{key}` is not a LoRA factor: the adapter does more than add B A."
        )
    if ".original_module." in key:
        return key, "original"
    saved = SAVED.fullmatch(key)
    if saved:
        return f"{saved['module']}.{saved['parameter']}", "full"
    return key.replace(".base_layer.", "."), "full"


def _is_saved(name: str, targets: Targets) -> bool:
    return any(f".{module}." in f".{name}" for module in targets.saved_modules)


def read_tensor(file: TensorFile, key: str) -> Tensor:
    """Read a tensor from an adapter's file.

    Raises
    ------
    CheckpointError
        The dtype of the tensor is not floating-point, or its values are not finite.
    """
    dtype = file.tensors[key].dtype
    if dtype not in FLOATS:
        raise CheckpointError(
            f"`{key}` in `{file.path}` has the type {dtype}; allowed: {', '.join(FLOATS)}."
        )
    value = file.read(key)
    # Later computations are in single precision, in which a large double becomes infinite.
    if not is_finite(value.float()):
        raise CheckpointError(
            f"`{key}` in `{file.path}` has values that are not finite (NaN or Inf)."
        )
    return value


def _keys(file: TensorFile, layer: str, keys: Mapping[str, str]) -> tuple[str, str]:
    """Return the keys of a layer's A and B; raise if the layer does not have both factors."""
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
    """Check the shapes of a layer's factors and return the factors without reading their values."""
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
            f"do not match `{CONFIG}` (rank {rank:g})."
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
    """Return a layer's LoRA rank, alpha and scale (alpha / rank, or alpha / √rank for rsLoRA).

    Raises
    ------
    CheckpointError
        The rank is not a positive integer, or alpha is not a finite number.
    """
    rank = _number(targets, "r", layer, "rank_pattern")
    alpha = _number(targets, "lora_alpha", layer, "alpha_pattern")
    divisor = rank
    if targets.config.get("use_rslora"):
        divisor = rank**0.5
    return int(rank), alpha, alpha / divisor


def _number(targets: Targets, key: str, layer: str, pattern: str) -> float:
    """Return the rank or alpha of a layer."""
    # As in peft, the first matching pattern overrides the general setting.
    value = targets.value(pattern, layer)
    if value is None:
        value = targets.config.get(key, 8)  # peft's default for both
    # Use `type`, not `isinstance`, because `True` is an int. NaN fails the comparison.
    if type(value) is int or type(value) is float:
        is_rank = type(value) is int and value > 0
        if abs(value) <= LARGEST and (key != "r" or is_rank):
            return value
    raise CheckpointError(
        f"`{targets.where}`: `{key}` of `{layer}` is {value!r}, which is not a valid value."
    )
