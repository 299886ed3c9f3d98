"""Choose the layers that get an adapter, and build the peft configuration from the settings."""

import math
from collections.abc import Callable, Mapping, Sequence

import peft
from peft.tuners.tuners_utils import check_target_module_exists
from torch import Tensor, nn

from perdure.errors import BackboneError
from perdure.models import adapters, patterns, quantised
from perdure.models.bottleneck import BottleneckConfig
from perdure.models.full import FullConfig, trains
from perdure.models.matrices import is_matrix, is_transposed

# Names of the query and value projections in the architectures of transformers.
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

# Names of the key and value projections.
KEY_VALUE = (
    "key",
    "value",
    "key_proj",
    "value_proj",
    "k_proj",
    "v_proj",
    "k_lin",
    "v_lin",
    "q",  # the T5 family, for which query and value are used
    "v",
)

# Names of layers that compute query, key and value together.
FUSED_ATTENTION = ("Wqkv", "qkv", "query_key_value", "in_proj", "c_attn", "qkv_proj")
ATTENTION_OUTPUT = (
    r"attention\.output\.dense|out_lin|attn\.Wo|attention\.o_proj|self_attn\.out_proj|attn\.proj"
    r"|attn\.c_proj|self_attn\.o_proj|SelfAttention\.o"
)
FEED_FORWARD_OUTPUT = (
    r"(?<!attention\.)output\.dense|ffn\.lin2|mlp\.Wo|mlp\.fc2|layers\.\d+\.fc2"
    r"|mlp\.c_proj|mlp\.down_proj|DenseReluDense\.wo"
)


def configure(
    model: nn.Module,
    kind: adapters.Kind,
    *,
    rank: int,
    alpha: float,
    dropout: float,
    target_modules: list[str] | str | None,
    blocks: int | None = None,
) -> peft.PeftConfig:
    """Return the peft configuration of an adapter for a model.

    Parameters
    ----------
    target_modules
        The names of linear layers (including GPT-2's `Conv1D`), or one regular
        expression. By default, LoRA is applied to the query and value projections, and
        bottleneck adapters to the outputs of attention and feed-forward layers
        (`"houlsby"`: Houlsby et al. 2019). `"pfeiffer"` selects only the outputs of
        feed-forward layers (Pfeiffer et al. 2021). `full` trains all layers that have a
        weight: linear layers, embeddings, norms and convolutions. It does not train
        parameters outside such layers, such as a class token, or weights that several
        layers share, such as tied input and output embeddings.
    blocks
        Use layers only from the first `blocks` blocks of the transformer.

    Raises
    ------
    BackboneError
        The model has no layers of these names, a layer shares its weight with another
        one, or the model is in 4 bits and the adapter is not LoRA.
    InputError
        `target_modules` is not a valid regular expression, or takes too long to match.
    """
    if kind != "lora" and quantised.is_quantised(model):
        raise BackboneError(
            f"`peft: {kind}` does not work with `dtype: {quantised.NF4}`: 4-bit weights can only "
            "be combined with LoRA. Use `peft: lora`, or `dtype: bfloat16`."
        )
    names = _names(model, trains if kind == "full" else is_matrix)
    tied = _tied(model)
    untied = [name for name in names if name not in tied]
    targets = target_modules or _usual_targets(kind, untied)
    # Two placements from the literature have names. Layer names differ between architectures.
    if targets == "houlsby":
        targets = rf".*({ATTENTION_OUTPUT}|{FEED_FORWARD_OUTPUT})"
    elif targets == "pfeiffer":
        targets = rf".*({FEED_FORWARD_OUTPUT})"
    config = _config(
        kind,
        targets,
        rank=rank,
        alpha=alpha,
        dropout=dropout,
    )
    if isinstance(targets, str):
        chosen = patterns.matching(targets, names, "`target_modules`")
    elif targets:
        chosen = [name for name in names if check_target_module_exists(config, name)]
    else:
        chosen = []
    if blocks is not None:
        chosen = [name for name in chosen if _block(name) < blocks]
    _check_untied(chosen, tied)
    # The adapter's file then lists layers, because patterns in files are never matched.
    if blocks is not None or isinstance(targets, str):
        config.target_modules = set(chosen)  # pyright: ignore
    if not chosen:
        given = f" with `target_modules={target_modules}`" if target_modules else ""
        examples = sorted(_endings(names))
        raise BackboneError(
            f"No layers for a `{kind}` module were found in `{type(model).__name__}`{given}. Give "
            f"`target_modules`, for example from: {examples}."
        )
    if isinstance(config, peft.LoraConfig):
        # Stock peft decides this layer by layer, and warns if the configuration differs.
        config.fan_in_fan_out = all(
            is_transposed(adapters.base_layer(model, name)) for name in chosen
        )
    return config


def _usual_targets(kind: adapters.Kind, names: list[str]) -> list[str] | str:
    if kind == "lora":
        return _present(names, QUERY_VALUE)
    return "houlsby" if kind == "bottleneck" else names


def _config(
    kind: adapters.Kind, targets: list[str] | str, *, rank: int, alpha: float, dropout: float
) -> peft.PeftConfig:
    if kind == "lora":
        return peft.LoraConfig(
            r=rank,
            lora_alpha=alpha,  # pyright: ignore[reportArgumentType]
            lora_dropout=dropout,
            target_modules=targets,
        )
    if kind == "bottleneck":
        return BottleneckConfig(width=rank, dropout=dropout, target_modules=targets)
    return FullConfig(target_modules=targets)


def _names(model: nn.Module, is_kind: Callable[[nn.Module], bool] = is_matrix) -> list[str]:
    """Return the names of the pre-trained layers of a kind, without layers added by an adapter."""
    inside_tuners = tuple(f"{name}." for name in adapters.tuner_layers(model))
    names = []
    for name, module in model.named_modules():
        # The layers of an adapter are inside a tuner layer, next to the pre-trained one.
        is_pretrained = name.endswith(".base_layer") or not name.startswith(inside_tuners)
        if is_pretrained and is_kind(module):
            names.append(name.removesuffix(".base_layer"))
    return names


def _tied(model: nn.Module) -> dict[str, str]:
    """Map the name of each layer that shares its weight to another layer with the same weight."""
    names: dict[int, list[str]] = {}
    weighted = _names(model, lambda layer: isinstance(getattr(layer, "weight", None), Tensor))
    # A layer with an adapter is listed twice, because the tuner layer exposes its weight.
    for name in dict.fromkeys(weighted):
        names.setdefault(id(adapters.base_layer(model, name).weight), []).append(name)
    tied: dict[str, str] = {}
    for sharing in names.values():
        if len(sharing) > 1:
            first, *others = sharing
            tied |= {first: others[0]} | dict.fromkeys(others, first)
    return tied


def _check_untied(chosen: Sequence[str], tied: Mapping[str, str]) -> None:
    """Raise `BackboneError` if a chosen layer shares its weight with another layer."""
    for name in chosen:
        if name in tied:
            # An adapter changes one layer, but once merged, the change would affect the others.
            raise BackboneError(
                f"`{name}` shares its weight with `{tied[name]}`, so a change to one would "
                "change both. Leave it out of `target_modules`."
            )


def _block(name: str) -> float:
    """Return the index of the transformer block that a layer is in.

    This is the first number in the layer's name, or infinity for a layer outside the blocks.
    """
    for word in name.split("."):
        if word.isdigit():
            return int(word)
    return math.inf


def key_value(model: nn.Module) -> list[str]:
    """Return the names of a model's key and value projections (query and value for T5 models)."""
    return _present(_names(model), KEY_VALUE)


def _present(names: list[str], candidates: Sequence[str]) -> list[str]:
    """Return the candidates that occur as the last part of a layer's name.

    If there are none, return the names of fused attention layers that do.
    """
    endings = _endings(names)
    present = [name for name in candidates if name in endings]
    if not present:
        present = [name for name in FUSED_ATTENTION if name in endings]
    return present


def _endings(names: Sequence[str]) -> set[str]:
    return {name.split(".")[-1] for name in names}
