"""PEFT modules on a backbone: put one in, read and write its parameters, switch it off, save it, take its ΔW.

The model holds one adapter at a time, under peft's own name `default`. What a task has learned is an
`Adapter`, a value: its parameters before and after training. So nothing grows with the number of tasks.
"""

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import peft
import torch
from annotated_types import Ge, Le, Lt
from jaxtyping import Float
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer, check_target_module_exists
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError
from torch import Tensor, nn

from perdure.errors import BackboneError, CheckpointError, RunError
from perdure.models import patterns
from perdure.models.bottleneck import BottleneckConfig
from perdure.models.full import FullConfig, trains
from perdure.models.matrices import is_matrix, is_transposed, matrix, oriented
from perdure.storage import files

Kind = Literal["lora", "bottleneck", "full"]
Parameters = dict[str, Tensor]

QUERY_VALUE = (
    "query",
    "value",
    "query_proj",
    "value_proj",
    "q_proj",
    "v_proj",
    "q_lin",
    "v_lin",
    "q",
    "v",
)
KEY_VALUE = (
    "key",
    "value",
    "key_proj",
    "value_proj",
    "k_proj",
    "v_proj",
    "k_lin",
    "v_lin",
    "q",
    "v",
)  # q, v: T5
FUSED_ATTENTION = ("Wqkv", "qkv", "query_key_value", "in_proj", "c_attn", "qkv_proj")
ATTENTION_OUTPUT = (
    r"attention\.output\.dense|out_lin|attn\.Wo|attention\.o_proj|self_attn\.out_proj|attn\.proj"
    r"|attn\.c_proj|self_attn\.o_proj|SelfAttention\.o"
)
FEED_FORWARD_OUTPUT = (
    r"(?<!attention\.)output\.dense|ffn\.lin2|mlp\.Wo|mlp\.fc2|layers\.\d+\.fc2"
    r"|mlp\.c_proj|mlp\.down_proj|DenseReluDense\.wo"
)


@dataclass(frozen=True)
class Adapter:
    """What one task has learned.

    Attributes
    ----------
    name
        The task's name.
    config
        peft's configuration of the module; none where a method has none, and so no parameters.
    start, parameters
        The module's parameters before and after the task, on the CPU, by peft's names.
    kept
        What was kept for rules, by its name and the layer's: `inputs` is E[x xᵀ] of what went into the layer.
    """

    name: str
    config: peft.PeftConfig | None
    start: Parameters
    parameters: Parameters
    kept: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict)


def configure(
    model: nn.Module,
    kind: Kind,
    *,
    rank: int,
    alpha: float,
    dropout: float,
    target_modules: list[str] | str | None,
    blocks: int | None = None,
) -> peft.PeftConfig:
    """peft's configuration for a model.

    `target_modules` are names of linear layers, among which GPT-2's `Conv1D` count (or one regular expression). By
    default LoRA takes the query and value projections, and a bottleneck adapter the outputs of attention and
    feed-forward parts (Houlsby et al. 2019); `"pfeiffer"` takes those of the feed-forward parts only (Pfeiffer et al.
    2021). `full` takes all layers that have a weight: linear ones, embeddings, norms, convolutions (parameters outside
    of such layers, as a class token, stay as they are). With `blocks`, only layers of the first so many blocks of the
    transformer are taken.

    Raises
    ------
    BackboneError
        The model has no layers of these names.
    InputError
        `target_modules` is not a regular expression, or takes too much time.
    """
    names = _names(model, trains if kind == "full" else is_matrix)
    usual = {"lora": _present(names, QUERY_VALUE), "bottleneck": "houlsby", "full": names}
    targets = target_modules or usual[kind]
    if targets in ("houlsby", "pfeiffer"):
        where = (
            FEED_FORWARD_OUTPUT
            if targets == "pfeiffer"
            else f"{ATTENTION_OUTPUT}|{FEED_FORWARD_OUTPUT}"
        )
        targets = rf".*({where})"
    if kind == "lora":
        config = peft.LoraConfig(
            r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules=targets
        )  # pyright: ignore
    elif kind == "bottleneck":
        config = BottleneckConfig(width=rank, dropout=dropout, target_modules=targets)
    else:
        config = FullConfig(target_modules=targets)
    if isinstance(targets, str):
        found = patterns.matching(targets, names, "`target_modules`")
    else:
        found = [name for name in names if targets and check_target_module_exists(config, name)]
    if blocks is not None:
        found = [name for name in found if _block(name) < blocks]
    if blocks is not None or isinstance(
        targets, str
    ):  # a file names layers: no pattern in it is ever matched
        config.target_modules = set(found)  # pyright: ignore
    if not found:
        raise BackboneError(
            f"No layers for a `{kind}` module were found in `{type(model).__name__}`"
            + (f" with `target_modules={target_modules}`" if target_modules else "")
            + f". Give `target_modules`, for example from: {sorted({name.split('.')[-1] for name in names})}."
        )
    if isinstance(
        config, peft.LoraConfig
    ):  # so that stock peft, which decides layer by layer, has nothing to warn of
        config.fan_in_fan_out = all(is_transposed(base_layer(model, name)) for name in found)
    return config


def _names(model: nn.Module, wanted: Callable[[nn.Module], bool] = is_matrix) -> list[str]:
    """The names of the pre-trained layers of a kind, whether or not the model holds an adapter."""
    held = tuple(
        f"{name}." for name, module in model.named_modules() if isinstance(module, BaseTunerLayer)
    )
    return [
        name.removesuffix(".base_layer")
        for name, module in model.named_modules()
        if wanted(module) and (not name.startswith(held) or name.endswith(".base_layer"))
    ]


def _block(name: str) -> float:
    """The number of the transformer's block that a layer is in: the first number in its name."""
    return next((int(part) for part in name.split(".") if part.isdigit()), math.inf)


def key_value(model: nn.Module) -> list[str]:
    """What the key and value projections of a model are called (query and value in T5's family)."""
    return _present(_names(model), KEY_VALUE)


def _present(names: list[str], wanted: Sequence[str]) -> list[str]:
    last = {name.split(".")[-1] for name in names}
    return [name for name in wanted if name in last] or [
        name for name in FUSED_ATTENTION if name in last
    ]


def layers(model: nn.Module) -> list[BaseTunerLayer]:
    """The layers that hold the adapter."""
    return [module for module in model.modules() if isinstance(module, BaseTunerLayer)]


def base_layer(model: nn.Module, name: str) -> Any:
    """The pre-trained layer called `name`, behind the adapter if there is one.

    Raises
    ------
    BackboneError
        The model has no such layer.
    """
    try:
        module = model.get_submodule(name)
    except AttributeError as error:
        raise BackboneError(
            f"`{type(model).__name__}` has no layer `{name}`, which the adapter changes."
        ) from error
    return module.get_base_layer() if isinstance(module, BaseTunerLayer) else module  # pyright: ignore


def put_base_layer(model: nn.Module, name: str, layer: nn.Module) -> None:
    """Put another in the place of the layer that `base_layer` gives."""
    module = model.get_submodule(name)
    if isinstance(module, BaseTunerLayer):
        module.base_layer = layer
    else:
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, layer)


def attach(model: nn.Module, config: peft.PeftConfig | None) -> None:
    """Put a fresh adapter (or none) into the model, in the place of any other. Its start follows torch's seed."""
    detach(model)
    if config:
        peft.inject_adapter_in_model(config, model)


def detach(model: nn.Module) -> None:
    """Take the adapter out: the model is as it was loaded."""
    for name, module in list(model.named_modules()):
        if isinstance(module, BaseTunerLayer):
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, module.get_base_layer())
    if hasattr(model, "peft_config"):
        del model.peft_config


def attached(model: nn.Module) -> bool:
    """Whether the model holds an adapter."""
    return hasattr(model, "peft_config")


def config_of(model: nn.Module) -> peft.PeftConfig | None:
    """The configuration of the adapter that the model holds, if it holds one."""
    return model.peft_config["default"] if attached(model) else None  # pyright: ignore


@contextlib.contextmanager
def disabled(model: nn.Module) -> Iterator[None]:
    """The pre-trained model itself, while the block runs."""
    held = layers(model)
    for layer in held:
        layer._disable_adapters = (
            True  # `enable_adapters(False)` would also change what may be trained
        )
    try:
        yield
    finally:
        for layer in held:
            layer._disable_adapters = False


def read(model: nn.Module) -> Parameters:
    """A copy of the adapter's parameters, on the CPU."""
    if not attached(model):
        return {}
    # by default peft asks the hub whether the vocabulary was changed; an adapter here never holds a larger vocabulary
    state = peft.get_peft_model_state_dict(
        model, adapter_name="default", save_embedding_layers=False
    )
    return {name: value.detach().cpu().clone() for name, value in state.items()}


def write(model: nn.Module, parameters: Parameters) -> None:
    """Give the adapter these parameters."""
    if not attached(model) and not parameters:
        return
    result = peft.set_peft_model_state_dict(model, parameters, adapter_name="default")
    missing = [name for name in result.missing_keys if ".default" in name]
    if result.unexpected_keys or missing:
        name = [*result.unexpected_keys, *missing][0]
        raise RunError(f"The adapter does not fit the model: `{name}` is in one of them only.")


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """The adapter's own parameters, by name."""
    return {name: parameter for name, parameter in model.named_parameters() if ".default" in name}


def linears(model: nn.Module) -> dict[str, nn.Linear]:
    """The adapter's own linear layers, by name."""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and name.endswith(".default")
    }


def factors(model: nn.Module) -> dict[str, tuple[nn.Parameter, nn.Parameter]]:
    """The LoRA parameters A (rank × in) and B (out × rank) of each layer that holds them."""
    return {
        name: (module.lora_A["default"].weight, module.lora_B["default"].weight)  # pyright: ignore
        for name, module in model.named_modules()
        if isinstance(module, LoraLayer)
    }


@contextlib.contextmanager
def folded(model: nn.Module, changes: Mapping[str, Tensor]) -> Iterator[None]:
    """W + ΔW in the place of W of each layer in `changes`, b + Δb of what ends with `.bias`, while the block runs.

    W is kept and put back: nothing is ever subtracted. An adapter may be put in or taken out meanwhile.
    """
    kept: list[tuple[Tensor, Tensor]] = []
    try:
        for name, change in changes.items():
            if name.endswith(".bias"):
                weight = base_layer(model, name.removesuffix(".bias")).bias
            else:
                layer = base_layer(model, name)
                weight = layer.weight
                change = oriented(layer, change)
            kept.append((weight, weight.data))
            weight.data = weight.data + change.to(weight)
        yield
    finally:
        for weight, before in kept:
            weight.data = before


def deltas(
    config: peft.PeftConfig | None, parameters: Parameters
) -> dict[str, tuple[Float[Tensor, "out rank"], Float[Tensor, "rank in"]] | Tensor]:
    """What is added to the weights, by layer: the factors B and A of ΔW = B A, with the scale alpha / rank put into B.

    Of `full`, ΔW itself, and Δb by the layer's name and `.bias`.

    Raises
    ------
    BackboneError
        The module is a bottleneck: it has no ΔW.
    """
    if isinstance(config, FullConfig):
        return {
            name.removesuffix(".full_weight").replace(".full_bias", ".bias"): v
            for name, v in parameters.items()
        }
    if config is None:
        return {}
    if not isinstance(config, peft.LoraConfig):
        raise BackboneError(
            "A bottleneck adapter is not a change of weights: combine it with `space: factor`."
        )
    other = [name for name in parameters if not name.endswith((".lora_A.weight", ".lora_B.weight"))]
    if other:
        raise BackboneError(
            f"`{other[0]}` is no factor of a linear layer's ΔW. Target linear layers only."
        )
    ends = ".lora_A.weight"
    return {
        name.removesuffix(ends): (
            _scale(config) * parameters[name.replace("lora_A", "lora_B")],
            value,
        )
        for name, value in parameters.items()
        if name.endswith(ends)
    }


def scale(adapter: Adapter) -> float:
    """What B A is multiplied with: alpha / rank for LoRA, 1 for a bottleneck."""
    return _scale(adapter.config) if isinstance(adapter.config, peft.LoraConfig) else 1.0


def _scale(config: peft.LoraConfig) -> float:
    return config.lora_alpha / (config.r**0.5 if config.use_rslora else config.r)


# -- the configuration that a file states

_Width = Annotated[int, Ge(1), Lt(10**6)]
_Share = Annotated[float, Ge(0), Le(1)]


class _Written(BaseModel):
    """What `adapter_config.json` of a run says of every adapter; more has to be as usual."""

    model_config = ConfigDict(strict=True, extra="allow", allow_inf_nan=False)
    make: ClassVar[Callable[..., peft.PeftConfig]]

    target_modules: Annotated[list[str], Field(fail_fast=True)] | str


class _WrittenLora(_Written):
    make = peft.LoraConfig

    peft_type: Literal["LORA"]
    r: _Width
    lora_alpha: float
    lora_dropout: _Share
    fan_in_fan_out: bool = False
    """Of layers whose weights are transposed, as GPT-2's are."""


class _WrittenBottleneck(_Written):
    make = BottleneckConfig

    peft_type: Literal["BOTTLENECK"]
    width: _Width
    dropout: _Share


class _WrittenFull(_Written):
    make = FullConfig

    peft_type: Literal["FULL"]


_WRITTEN: TypeAdapter[_WrittenLora | _WrittenBottleneck | _WrittenFull] = TypeAdapter(
    Annotated[_WrittenLora | _WrittenBottleneck | _WrittenFull, Field(discriminator="peft_type")]
)


def config_from(path: Path, layers: set[str]) -> peft.PeftConfig:
    """Read peft's configuration: the settings that this library makes; any other must be as usual.

    Where it has a pattern for `target_modules`, as version 0.1 wrote, the configuration names the `layers` that have
    parameters instead: a pattern of a file is never matched, for that could take forever.

    Raises
    ------
    CheckpointError
        It is damaged, or states what no run writes.
    """
    values = files.read_json(path)
    foreign = CheckpointError(f"`{path}` is no configuration of an adapter that a run has written.")
    try:
        written = _WRITTEN.validate_python(values)
    except ValidationError as error:
        raise foreign from error
    targets = written.target_modules
    if not targets or (isinstance(targets, list) and not _are_targets(targets, layers)):
        raise foreign
    known = type(written).model_fields.keys() - {"peft_type", "target_modules"}
    taken = {name: values[name] for name in known & values.keys()}
    config = written.make(
        target_modules=set(targets) if isinstance(targets, list) else layers, **taken
    )
    usual = config.to_dict()
    free = {
        *taken,
        "target_modules",
        "base_model_name_or_path",
        "inference_mode",
        "modules_to_save",
        "peft_version",
    }
    other = [
        key
        for key, value in values.items()
        if key not in free and value and value != usual.get(key)
    ]
    if other:
        raise CheckpointError(
            f"`{path}`: `{other[0]}` is {str(values[other[0]])[:100]}, which no run writes."
        )
    return config


def _are_targets(names: list[str], layers: set[str]) -> bool:
    """Whether these names, or ends of names, are those of the layers, each of some and all together of all."""
    found = [{layer for layer in layers if f".{layer}".endswith(f".{name}")} for name in names]
    return all(found) and set().union(*found) == layers


def width_of(config: peft.PeftConfig) -> int | None:
    """The rank of LoRA, the width of a bottleneck; `full` has none."""
    return getattr(config, "width", getattr(config, "r", None))


def prefix_of(config: peft.PeftConfig) -> str:
    """How the names of its parameters begin."""
    return "lora_" if isinstance(config, peft.LoraConfig) else f"{str(config.peft_type).lower()}_"


def check_fits(model: nn.Module, adapter: Adapter) -> None:
    """Whether an adapter is one for this model, before it is put in.

    Raises
    ------
    BackboneError
        The model has no such layer, or one of another shape.
    """
    for key, value in adapter.parameters.items():
        name, _, part = key.removesuffix(".weight").removesuffix(".bias").rpartition(".")
        layer = base_layer(model, name)
        weight = matrix(layer) if hasattr(layer, "weight") else torch.empty(0)
        rows, columns = weight.shape if weight.dim() == 2 else (0, 0)
        fits = {"lora_A": value.shape[-1] == columns, "lora_B": len(value) == rows}
        if part.startswith("full_"):
            whole = weight if part == "full_weight" else getattr(layer, "bias", None)
            fits[part] = whole is not None and whole.shape == value.shape
        if not fits.get(part, rows in value.shape or key.endswith("_down.bias")):
            raise BackboneError(
                f"`{key}` of task `{adapter.name}` has the shape {list(value.shape)}, but the layer of "
                f"`{type(model).__name__}` is {list(weight.shape)}. Is it the model that the run began with?"
            )


def same(left: Parameters, right: Parameters) -> bool:
    """Whether all parameters are equal, bit for bit."""
    return left.keys() == right.keys() and all(
        torch.equal(left[name], right[name]) for name in left
    )
