"""A model's `config.json`, read with care: plain values are checked before any class of transformers sees them."""

from collections.abc import Iterator, Mapping
from typing import Any

from transformers import PreTrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from perdure.errors import BackboneError
from perdure.models.model_files import CONFIG, MAX_CONFIG, ModelFiles

LABELS = ("num_labels", "_num_labels", "id2label", "label2id", "problem_type")
"""What a stored head has learned: every task gets a head of its own, so it is left out, right or wrong."""
REACHES_OUT = (
    *(
        "auto_map",
        "custom_pipelines",
        "transformers_weights",
        "configuration_files",
        "use_pretrained_backbone",
    ),
    *("attn_implementation", "_attn_implementation", "_attn_implementation_internal"),
    "experts_implementation",
)
"""Keys that name code, kernels or weights elsewhere: they are never followed."""
TRADES_SPEED = ("chunk_size_feed_forward", "gradient_checkpointing")
"""Keys that change no number, but fail with texts of some lengths, or where something is read of the layers."""
COUNTS = ("layer", "block", "depth", "head", "group", "stage", "expert")
MOST = 10_000
"""Of layers, heads and the like. Some classes make a list of that length at once; the deepest have 200 layers."""


def read(files: ModelFiles) -> PreTrainedConfig:
    """The configuration of a model, without the head that it was stored with.

    Raises
    ------
    BackboneError
        It is damaged or absurd, belongs to a model that needs code of its own, or to a quantised one.
    """
    where = f"`{files.folder / CONFIG}`"
    values = files.read_json(CONFIG, MAX_CONFIG)
    _check_kind(files, values, where)
    for name, number in _counts(values):
        if not -1 <= number <= MOST:
            raise BackboneError(
                f"{where}: `{name}` is {number:.0f}, but no model has more than {MOST}."
            )
    left_out = (*LABELS, *REACHES_OUT, *TRADES_SPEED)
    kept = {name: value for name, value in values.items() if name not in left_out}
    config = CONFIG_MAPPING[values["model_type"]].from_dict(kept)
    config._name_or_path = files.source  # by which transformers knows some models of the hub
    return config


def _check_kind(files: ModelFiles, values: Mapping[str, Any], where: str) -> None:
    kind = values.get("model_type")
    if not isinstance(kind, str):
        raise BackboneError(
            f"{where} has no `model_type`, by which transformers knows what the model is."
        )
    if (files.folder / "adapter_config.json").exists():
        raise BackboneError(
            f"`{files.source}` holds an adapter beside the model. Merge it first, with `perdure merge`, or take "
            "`adapter_config.json` out."
        )
    if kind not in CONFIG_MAPPING:
        own_code = (
            "it names Python code of its own, which is never run"
            if "auto_map" in values
            else "it has no such"
        )
        raise BackboneError(
            f"`{files.source}` is a `{kind[:100]}`, which transformers does not know: {own_code}."
        )
    quantised = values.get("quantization_config")
    if quantised:
        method = quantised.get("quant_method") if isinstance(quantised, Mapping) else None
        raise BackboneError(
            f"`{files.source}` is quantised ({method or 'by an unknown method'}), and its weights cannot be trained "
            "or merged here. Give the model from which it was made."
        )


def _counts(
    values: Mapping[str, Any], above: str = "", depth: int = 0
) -> Iterator[tuple[str, float]]:
    """The numbers of layers, heads and the like, those of inner configurations too; each with its name."""
    for key, value in values.items():
        name = f"{above}{key}"
        if isinstance(value, Mapping) and depth < 5:
            yield from _counts(value, f"{name}.", depth + 1)
        elif any(part in key for part in COUNTS):
            numbers = value if isinstance(value, list) else [value]
            for number in numbers:
                if isinstance(number, int | float):
                    yield name, number
