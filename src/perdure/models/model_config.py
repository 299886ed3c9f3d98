"""Read and check a model's `config.json`.

The values are checked before they are passed to transformers.
"""

from collections.abc import Iterator, Mapping

from transformers import PreTrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from perdure.errors import BackboneError
from perdure.models.model_files import CONFIG, MAX_CONFIG, ModelFiles

# Keys that describe the stored head. They are dropped, because each task gets a new head.
LABELS = ("num_labels", "_num_labels", "id2label", "label2id", "problem_type")

# Keys that refer to code, kernels or weights elsewhere. They are dropped.
REACHES_OUT = (
    "auto_map",
    "custom_pipelines",
    "transformers_weights",
    "configuration_files",
    "use_pretrained_backbone",
    "attn_implementation",
    "_attn_implementation",
    "_attn_implementation_internal",
    "experts_implementation",
)

# Keys that do not affect results, but make a model fail on texts of certain lengths, or
# when hooks read from its layers.
TRADES_SPEED = ("chunk_size_feed_forward", "gradient_checkpointing")

# Words in the names of settings that count parts of the model.
COUNTS = ("layer", "block", "depth", "head", "group", "stage", "expert")

# The maximum number of layers, heads and so on. Some classes immediately build a list of
# that length; the deepest models have 200 layers.
MOST = 10_000


def read(files: ModelFiles) -> PreTrainedConfig:
    """Read a model's configuration, leaving out the settings of the stored head.

    Raises
    ------
    BackboneError
        The configuration is damaged or absurd, the model needs custom code or is
        quantised, or its folder also contains an adapter.
    """
    where = f"`{files.folder / CONFIG}`"
    values = files.read_json(CONFIG, MAX_CONFIG)
    _check_kind(files, values, where)
    for name, number in _counts(values):
        if not -1 <= number <= MOST:  # some files say -1 for "all"
            raise BackboneError(
                f"{where}: `{name}` is {number:.0f}, but no model has more than {MOST}."
            )
    left_out = (*LABELS, *REACHES_OUT, *TRADES_SPEED)
    kept = {}
    for name, value in values.items():
        if name not in left_out:
            kept[name] = value
    config_class = CONFIG_MAPPING[values["model_type"]]
    config = config_class.from_dict(kept)
    config._name_or_path = files.source  # transformers recognises some hub models by this name
    return config


def _check_kind(files: ModelFiles, values: Mapping[str, object], where: str) -> None:
    """Reject a model that transformers does not know, that is quantised, or that has an adapter."""
    kind = values.get("model_type")
    if not isinstance(kind, str):
        raise BackboneError(
            f"{where} has no `model_type`, which tells transformers what the model is."
        )
    if (files.folder / "adapter_config.json").exists():
        raise BackboneError(
            f"`{files.source}` contains an adapter in addition to the model. Merge it first with "
            "`perdure merge`, or remove `adapter_config.json`."
        )
    if kind not in CONFIG_MAPPING:
        reason = "there is no such model type"
        if "auto_map" in values:
            reason = "it needs Python code of its own, which is never run"
        raise BackboneError(
            f"`{files.source}` is a `{kind[:100]}`, which transformers does not know: {reason}."
        )
    quantised = values.get("quantization_config")
    if quantised:
        method = quantised.get("quant_method") if isinstance(quantised, Mapping) else None
        raise BackboneError(
            f"`{files.source}` is quantised ({method or 'by an unknown method'}), so its weights "
            "cannot be trained or merged. Give the original model."
        )


def _counts(
    values: Mapping[str, object], prefix: str = "", depth: int = 0
) -> Iterator[tuple[str, float]]:
    """Yield the name and value of each setting that counts layers, heads and so on.

    Settings of nested configurations are included, with names such as `text_config.num_layers`.
    """
    for key, value in values.items():
        name = f"{prefix}{key}"
        # No configuration in use is nested more deeply, but a damaged one may be.
        if isinstance(value, Mapping) and depth < 5:
            yield from _counts(value, f"{name}.", depth + 1)
        elif any(word in key for word in COUNTS):
            numbers = value if isinstance(value, list) else [value]
            for number in numbers:
                if isinstance(number, int | float):
                    yield name, number
