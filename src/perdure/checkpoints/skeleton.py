"""The base model as built by transformers, without allocating its weights.

The files alone do not show whether a square weight belongs to an `nn.Linear` or a
`Conv1D`, which tables are tied, or how tensors are renamed and joined during loading.
Building the model takes seconds, so this is done only when one of these questions has to
be answered.
"""

import re
from collections.abc import Mapping
from functools import cached_property
from typing import Any

from perdure.checkpoints.base import Checkpoint

# Model types whose blocks contain `Conv1D` layers, which store W as in × out.
CONV1D = (
    "clvp_decoder",
    "decision_transformer",
    "gpt2",
    "imagegpt",
    "openai-gpt",
)
# Settings that refer to external code or weights, or could create a huge list of labels.
LEFT_OUT = (
    "auto_map",
    "custom_pipelines",
    "use_pretrained_backbone",
    "num_labels",
    "_num_labels",
)
# The names of settings that specify a number of modules.
COUNT = re.compile(r"(n|num|encoder|decoder)_.*(layers?|blocks?|experts?)")


class Skeleton:
    """The information that transformers has about a base model.

    If transformers does not know the model, its attributes are None or empty.

    Parameters
    ----------
    kind
        The transformers class to build; by default, the one named in the configuration.
    """

    def __init__(self, base: Checkpoint, kind: str | None = None) -> None:
        self.base = base
        self._kind = kind

    def may_have_conv1d(self) -> bool:
        """Return True if the type of the base model, or of a nested model, has `Conv1D` layers."""
        # A vision-language model nests the configurations of two models.
        for key, value in _items(self.base.config):
            if key == "model_type" and value in CONV1D:
                return True
        return False

    def is_conv1d(self, tensor: str) -> bool | None:
        """Return True if a weight of the base model belongs to a `Conv1D`, or None if unknown."""
        if self.model is None or tensor not in self._loaded_names:
            return None
        from transformers.pytorch_utils import Conv1D

        name = self._loaded_names[tensor].rpartition(".")[0]
        module = self.model.get_submodule(name)
        return isinstance(module, Conv1D)

    @cached_property
    def model(self) -> Any:
        """The transformers model on the `meta` device, or None if it cannot be built."""
        if not _is_plausible(self.base):
            return None
        try:
            return _build(self.base, self._kind)
        except Exception:
            # With an untrusted configuration, transformers may raise anything.
            return None

    @cached_property
    def tensors(self) -> dict[str, str]:
        """The tensors that are not joined during loading, by their names in transformers."""
        tensors: dict[str, str] = {}
        for tensor, (name, pattern) in self._loaded.items():
            if pattern is None:
                tensors[name] = tensor
        return tensors

    @cached_property
    def joined(self) -> dict[str, dict[str, list[str]]]:
        """The tensors that are joined into one parameter during loading.

        They are grouped by the name of the parameter, and then by the pattern that they
        match in the conversion table of transformers, in the order in which transformers
        joins them.
        """
        joined: dict[str, dict[str, list[str]]] = {}
        for tensor in sorted(self._loaded, key=_natural):
            name, pattern = self._loaded[tensor]
            if pattern is None:
                continue
            by_pattern = joined.setdefault(name, {})
            tensors = by_pattern.setdefault(pattern, [])
            tensors.append(tensor)
        return joined

    def operations(self, pattern: str) -> tuple[list[str], list[str]]:
        """Return the patterns joined with this one, in order, and the operations that join them."""
        _, converters = self._table
        for converter in converters:
            if pattern not in converter.source_patterns:
                continue
            steps: list[str] = []
            for operation in converter.operations:
                dimension = getattr(operation, "dim", "")
                steps.append(f"{type(operation).__name__}({dimension})")
            return list(converter.source_patterns), steps
        return [], []

    @cached_property
    def ties(self) -> dict[str, str]:
        """The tied parameters, mapped to the names of the parameters they are tied to.

        All names are those in the base model.
        """
        tied = getattr(self.model, "all_tied_weights_keys", None) or {}
        ties: dict[str, str] = {}
        for name, other in tied.items():
            stored = self.stored(name)
            ties[stored] = self.stored(other)
        return ties

    @cached_property
    def tables(self) -> set[str]:
        """The parameters of the input and output embeddings, which have one row per token."""
        tables: set[str] = set()
        if self.model is None:
            return tables
        embeddings = [self.model.get_input_embeddings(), self.model.get_output_embeddings()]
        for name, module in self.model.named_modules():
            if not any(module is embedding for embedding in embeddings):
                continue
            for parameter, _ in module.named_parameters(recurse=False):
                tables.add(self.stored(f"{name}.{parameter}"))
        return tables

    def stored(self, name: str) -> str:
        """Return the name of a parameter in the base model, or `name` if it is not stored there."""
        return self.tensors.get(name, name)

    @cached_property
    def _loaded_names(self) -> dict[str, str]:
        """The names that tensors have in transformers, by their names in the base model."""
        return {tensor: name for name, tensor in self.tensors.items()}

    @cached_property
    def _table(self) -> tuple[list, list]:
        """The conversion table of transformers, split into renamings and other conversions."""
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import WeightRenaming

        renamings = []
        converters = []
        for entry in get_model_conversion_mapping(self.model):
            entries = renamings if isinstance(entry, WeightRenaming) else converters
            entries.append(entry)
        return renamings, converters

    @cached_property
    def _loaded(self) -> Mapping[str, tuple[str, str | None]]:
        """The parameter into which each tensor is loaded, with the matching pattern if joined."""
        if self.model is None:
            return {}
        try:
            from transformers.core_model_loading import rename_source_key

            renamings, converters = self._table
            state = self.model.state_dict()
            loaded: dict[str, tuple[str, str | None]] = {}
            for name in self.base.where:
                loaded[name] = rename_source_key(
                    name,
                    renamings,
                    converters,
                    self.model.base_model_prefix,
                    state,
                )
            return loaded
        except Exception:
            # The table is private to transformers, and may differ in other versions.
            return {}


def _build(base: Checkpoint, architecture: str | None) -> Any:
    """Build the base model, or one with the same configuration and a different head."""
    import torch
    import transformers
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    settings = _without_reach(base.config)
    config_class = CONFIG_MAPPING[base.config["model_type"]]
    config = config_class.from_dict(settings)
    name = architecture or (config.architectures or ["AutoModel"])[0]
    kind = getattr(transformers, name, None) or transformers.AutoModel
    # An `AutoModel…` has `from_config`; a concrete class has only the private method.
    from_config = getattr(kind, "_from_config", None) or kind.from_config
    # On `meta`, tensors have a shape but no memory, so a model of any size is built quickly.
    with torch.device("meta"):
        return from_config(config)


def _without_reach(config: Mapping[str, object]) -> dict[str, object]:
    """Return a copy of a configuration without the settings in `LEFT_OUT`, at any depth."""
    settings: dict[str, object] = {}
    for key, value in config.items():
        if key in LEFT_OUT:
            continue
        settings[key] = _without_reach(value) if isinstance(value, dict) else value
    return settings


def _is_plausible(base: Checkpoint) -> bool:
    """Return False if a configuration specifies many more modules than the files have tensors."""
    # Each module is a Python object, and an untrusted configuration could specify a billion.
    largest = max(100, len(base.where))
    for key, value in _items(base.config):
        if isinstance(value, int) and value > largest and COUNT.fullmatch(key):
            return False
    return True


def _items(config: Mapping[str, object]) -> list[tuple[str, object]]:
    """Return the settings of a configuration and of all nested configurations."""
    items: list[tuple[str, object]] = []
    for key, value in config.items():
        items.append((str(key), value))
        if isinstance(value, dict):
            items += _items(value)
    return items


def _natural(name: str) -> list[tuple[int, str]]:
    """Return a sort key that orders numbers by value, so that `experts.10` follows `experts.9`."""
    key: list[tuple[int, str]] = []
    for word in name.split("."):
        if word.isdigit():
            key.append((int(word), ""))
        else:
            key.append((-1, word))
    return key
