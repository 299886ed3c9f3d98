"""A model's `config.json`, read with care.

Plain values are checked before any class of transformers sees them.
"""

from collections.abc import Iterator, Mapping

from transformers import PreTrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from perdure.errors import BackboneError
from perdure.models.model_files import CONFIG, MAX_CONFIG, ModelFiles

# Keys that describe the stored head. Every task gets a head of its own, so they are left out.
LABELS = ("num_labels", "_num_labels", "id2label", "label2id", "problem_type")

# Keys that name code, kernels or weights elsewhere: they are never followed.
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

# Keys that change no number, but make a model fail with texts of some lengths, or where something
# is read from its layers.
TRADES_SPEED = ("chunk_size_feed_forward", "gradient_checkpointing")

# Words in the names of settings that count something in the model.
COUNTS = ("layer", "block", "depth", "head", "group", "stage", "expert")

# The largest count of layers, heads and the like. Some classes make a list of that length at once;
# the deepest models have 200 layers.
MOST = 10_000


def read(files: ModelFiles) -> PreTrainedConfig:
    """Read a model's configuration, without the head it was stored with.

    Raises
    ------
    BackboneError
        It is damaged or absurd, belongs to a model that needs code of its own, or to a quantised
        one.
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
    config._name_or_path = files.source  # transformers knows some models of the hub by this name
    return config


def _check_kind(files: ModelFiles, values: Mapping[str, object], where: str) -> None:
    """Refuse a model that transformers does not know, that is quantised, or that has an adapter."""
    kind = values.get("model_type")
    if not isinstance(kind, str):
        raise BackboneError(
            f"{where} has no `model_type`, by which transformers knows what the model is."
        )
    if (files.folder / "adapter_config.json").exists():
        raise BackboneError(
            f"`{files.source}` holds an adapter beside the model. Merge it first, with "
            "`perdure merge`, or take `adapter_config.json` out."
        )
    if kind not in CONFIG_MAPPING:
        reason = "it has no such model"
        if "auto_map" in values:
            reason = "it names Python code of its own, which is never run"
        raise BackboneError(
            f"`{files.source}` is a `{kind[:100]}`, which transformers does not know: {reason}."
        )
    quantised = values.get("quantization_config")
    if quantised:
        method = quantised.get("quant_method") if isinstance(quantised, Mapping) else None
        raise BackboneError(
            f"`{files.source}` is quantised ({method or 'by an unknown method'}), and its weights "
            "cannot be trained or merged here. Give the model from which it was made."
        )


def _counts(
    values: Mapping[str, object], prefix: str = "", depth: int = 0
) -> Iterator[tuple[str, float]]:
    """Yield the name and value of each number of layers, heads and the like.

    Those of inner configurations are included, with names such as `text_config.num_layers`.
    """
    for key, value in values.items():
        name = f"{prefix}{key}"
        # No configuration in use nests deeper, and a damaged one may nest without reason.
        if isinstance(value, Mapping) and depth < 5:
            yield from _counts(value, f"{name}.", depth + 1)
        elif any(word in key for word in COUNTS):
            numbers = value if isinstance(value, list) else [value]
            for number in numbers:
                if isinstance(number, int | float):
                    yield name, number
