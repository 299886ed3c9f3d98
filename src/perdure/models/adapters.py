"""PEFT modules on a backbone.

Functions to attach an adapter, read and write its parameters, turn it off, and compute its ΔW.

A model contains at most one adapter at a time, under peft's default name `default`. After
a task, its parameters are stored outside the model, as an `Adapter`. The model therefore
does not grow with the number of tasks.
"""

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import peft
import torch
from jaxtyping import Float
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from perdure.errors import BackboneError, RunError
from perdure.models import placement, quantised
from perdure.models.adapter_config import config_from as config_from
from perdure.models.full import FullConfig
from perdure.models.matrices import oriented

Kind = Literal["lora", "bottleneck", "full"]
Parameters = dict[str, Tensor]


@dataclass(frozen=True)
class Adapter:
    """The parameters of a module that was trained on one task.

    Attributes
    ----------
    name
        The task's name.
    config
        The peft configuration of the module; None if the method trains no module.
    start, parameters
        The parameters of the module before and after training on the task, on the CPU,
        under the names that peft gives them.
    kept
        Additional tensors that some merging rules need, by name and then by layer. The
        entry `inputs` contains E[x xᵀ] for each layer, where x is an input to the layer.
    """

    name: str
    config: peft.PeftConfig | None
    start: Parameters
    parameters: Parameters
    kept: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict)


def tuner_layers(model: nn.Module) -> dict[str, BaseTunerLayer]:
    """Return the layers that contain the adapter, by name."""
    tuners: dict[str, BaseTunerLayer] = {}
    for name, module in model.named_modules():
        if isinstance(module, BaseTunerLayer):
            tuners[name] = module
    return tuners


def layers(model: nn.Module) -> list[BaseTunerLayer]:
    """Return the layers that contain the adapter."""
    return list(tuner_layers(model).values())


def base_layer(model: nn.Module, name: str) -> Any:
    """Return the pre-trained layer called `name`, without the adapter around it, if any.

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
    """Replace the pre-trained layer called `name`, which `base_layer` returns."""
    module = model.get_submodule(name)
    if isinstance(module, BaseTunerLayer):
        module.base_layer = layer
    else:
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, layer)


def attach(model: nn.Module, config: peft.PeftConfig | None) -> None:
    """Insert a new adapter into the model, after removing any other.

    If `config` is None, no adapter is inserted. Initial values depend on torch's global seed.
    """
    detach(model)
    if config:
        peft.inject_adapter_in_model(config, model)
        # In single precision even if the model is in half: rounding would lose small steps.
        for parameter in trainable(model).values():
            parameter.data = parameter.data.float()


def detach(model: nn.Module) -> None:
    """Remove the adapter, which restores the model as it was loaded."""
    for name, layer in tuner_layers(model).items():
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, layer.get_base_layer())
    # This attribute tells peft and `attached` that the model contains an adapter.
    if hasattr(model, "peft_config"):
        del model.peft_config


def attached(model: nn.Module) -> bool:
    """Return whether the model contains an adapter."""
    return hasattr(model, "peft_config")


def config_of(model: nn.Module) -> peft.PeftConfig | None:
    """Return the configuration of the adapter in the model, or None if there is no adapter."""
    return model.peft_config["default"] if attached(model) else None  # pyright: ignore


@contextlib.contextmanager
def disabled(model: nn.Module) -> Iterator[None]:
    """Disable the adapter while the block runs, leaving only the pre-trained model."""
    tuners = layers(model)
    for layer in tuners:
        # Not `enable_adapters(False)`, which would also change which parameters are trained.
        layer._disable_adapters = True
    try:
        yield
    finally:
        for layer in tuners:
            layer._disable_adapters = False


def read(model: nn.Module) -> Parameters:
    """Return a copy of the adapter's parameters, on the CPU."""
    if not attached(model):
        return {}
    # By default, peft asks the hub whether the vocabulary was changed. No adapter here
    # extends the vocabulary, and a run must not need the network.
    state = peft.get_peft_model_state_dict(
        model, adapter_name="default", save_embedding_layers=False
    )
    # Copies, because training continues on the originals.
    return {name: value.detach().cpu().clone() for name, value in state.items()}


def write(model: nn.Module, parameters: Parameters) -> None:
    """Set the parameters of the adapter in the model.

    Raises
    ------
    RunError
        The parameter names do not match those of the adapter.
    """
    if not attached(model) and not parameters:
        return
    result = peft.set_peft_model_state_dict(model, parameters, adapter_name="default")
    # peft also reports all of the pre-trained model's parameters as missing, which is expected.
    missing = [name for name in result.missing_keys if ".default" in name]
    if result.unexpected_keys or missing:
        name = [*result.unexpected_keys, *missing][0]
        raise RunError(f"The adapter does not fit the model: only one of them has `{name}`.")


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters of the adapter in the model, by name."""
    parameters = {}
    for name, parameter in model.named_parameters():
        if ".default" in name:  # peft puts the adapter's name into the names of its parameters
            parameters[name] = parameter
    return parameters


def linears(model: nn.Module) -> dict[str, nn.Linear]:
    """Return the linear layers that the adapter consists of, by name."""
    modules: dict[str, nn.Linear] = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and name.endswith(".default"):
            modules[name] = module
    return modules


def factors(model: nn.Module) -> dict[str, tuple[nn.Parameter, nn.Parameter]]:
    """Return the LoRA parameters A (rank × in) and B (out × rank), by layer name."""
    pairs: dict[str, tuple[nn.Parameter, nn.Parameter]] = {}
    for name, module in model.named_modules():
        if isinstance(module, LoraLayer):
            A = module.lora_A["default"].weight
            B = module.lora_B["default"].weight
            pairs[name] = A, B  # pyright: ignore
    return pairs


@contextlib.contextmanager
def folded(model: nn.Module, changes: Mapping[str, Tensor]) -> Iterator[None]:
    """Add changes to the weights of a model while the block runs.

    The original weights are kept and restored afterwards, because subtracting the changes
    would leave rounding errors. An adapter may be attached or detached in the meantime.

    Parameters
    ----------
    changes
        ΔW under the name of each layer, and Δb under that name followed by `.bias`.
    """
    originals: list[tuple[Tensor, Tensor]] = []
    hooks: list[RemovableHandle] = []
    try:
        for name, change in changes.items():
            if name.endswith(".bias"):
                weight = base_layer(model, name.removesuffix(".bias")).bias
            else:
                layer = base_layer(model, name)
                weight = layer.weight
                if quantised.in_4_bits(weight):
                    hooks.append(quantised.beside(layer, change))
                    continue
                change = oriented(layer, change)
            rows = placement.stored(weight)
            originals.append((weight, rows))
            # Add in single precision even to weights in half precision, so that only the
            # sum is rounded.
            change = placement.like(change, weight).to(rows.device)
            placement.put(weight, (rows.float() + change.float()).to(rows.dtype))
        yield
    finally:
        for weight, original in originals:
            placement.put(weight, original)
        for hook in hooks:
            hook.remove()


def deltas(
    config: peft.PeftConfig | None, parameters: Parameters
) -> dict[str, tuple[Float[Tensor, "out rank"], Float[Tensor, "rank in"]] | Tensor]:
    """Return the change that an adapter makes to the weights, by layer.

    For LoRA, each change consists of the factors B and A of ΔW = B A, with the scale
    alpha / rank included in B. For `full`, it is ΔW itself, with Δb under the layer's
    name followed by `.bias`.

    Raises
    ------
    BackboneError
        The adapter is a bottleneck, which has no ΔW, or LoRA on a layer that is not linear.
    """
    if config is None:
        return {}
    changes: dict[str, tuple[Tensor, Tensor] | Tensor] = {}
    if isinstance(config, FullConfig):
        for name, value in parameters.items():
            layer = name.removesuffix(".full_weight").replace(".full_bias", ".bias")
            changes[layer] = value
        return changes
    if not isinstance(config, peft.LoraConfig):
        raise BackboneError(
            "A bottleneck adapter is not a change of weights: combine it with `space: factor`."
        )
    ending_A, ending_B = ".lora_A.weight", ".lora_B.weight"
    for name in parameters:
        # An embedding, for example, has `lora_embedding_A` and `lora_embedding_B`.
        if not name.endswith((ending_A, ending_B)):
            raise BackboneError(
                f"`{name}` is not a factor of a linear layer's ΔW. Target linear layers only."
            )
    for name, A in parameters.items():
        if name.endswith(ending_A):
            B = parameters[name.replace("lora_A", "lora_B")]
            layer = name.removesuffix(ending_A)
            changes[layer] = (_scale(config) * B, A)
    return changes


def scale(adapter: Adapter) -> float:
    """Return the factor alpha / rank by which LoRA scales B A, or 1 for other adapters."""
    return _scale(adapter.config) if isinstance(adapter.config, peft.LoraConfig) else 1.0


def _scale(config: peft.LoraConfig) -> float:
    divisor = config.r**0.5 if config.use_rslora else config.r
    return config.lora_alpha / divisor


def width_of(config: peft.PeftConfig) -> int | None:
    """Return the rank of LoRA or the width of a bottleneck; None for `full`."""
    return getattr(config, "width", getattr(config, "r", None))


def prefix_of(config: peft.PeftConfig) -> str:
    """Return the prefix that peft gives to the names of an adapter's parameters."""
    return "lora_" if isinstance(config, peft.LoraConfig) else f"{str(config.peft_type).lower()}_"


def same(left: Parameters, right: Parameters) -> bool:
    """Return whether two sets of parameters have the same names and exactly equal values."""
    if left.keys() != right.keys():
        return False
    return all(torch.equal(left[name], right[name]) for name in left)
