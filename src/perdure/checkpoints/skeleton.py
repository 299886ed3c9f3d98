"""The base as transformers builds it, without allocating its weights.

The files alone do not show whether a square weight belongs to an `nn.Linear` or a `Conv1D`,
which tables are tied, or how tensors are renamed and joined during loading. Asking transformers
takes seconds, so the model is built only when one of these questions comes up.
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
# The names of settings that give a number of modules.
COUNT = re.compile(r"(n|num|encoder|decoder)_.*(layers?|blocks?|experts?)")


class Skeleton:
    """The information that transformers has about a base; empty if it does not know the model.

    Parameters
    ----------
    kind
        The transformers class to build; by default, the one in the base's configuration.
    """

    def __init__(self, base: Checkpoint, kind: str | None = None) -> None:
        self.base = base
        self._kind = kind

    def may_have_conv1d(self) -> bool:
        """Return True if the base, or a model nested in it, is of a type with `Conv1D` layers."""
        # A vision-language model nests the configurations of two models.
        for key, value in _items(self.base.config):
            if key == "model_type" and value in CONV1D:
                return True
        return False

    def is_conv1d(self, tensor: str) -> bool | None:
        """Return True if a weight of the base belongs to a `Conv1D`, or None if unknown."""
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
        """The tensors that are loaded without being joined, by their name in transformers."""
        tensors: dict[str, str] = {}
        for tensor, (name, pattern) in self._loaded.items():
            if pattern is None:
                tensors[name] = tensor
        return tensors

    @cached_property
    def joined(self) -> dict[str, dict[str, list[str]]]:
        """The tensors that are joined into one parameter during loading.

        The keys are the parameter's name, then the pattern in transformers' table that the
        tensors match. The tensors are in the order in which transformers joins them.
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
        """Return the patterns joined with this one (in order), and the joining operations."""
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
        """The parameters that are tied to another one, with that one's name, as in the base."""
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
        """Return a parameter's name in the base, or the name itself if the base lacks it."""
        return self.tensors.get(name, name)

    @cached_property
    def _loaded_names(self) -> dict[str, str]:
        """The transformers names of the base's tensors, by their names in the base."""
        return {tensor: name for name, tensor in self.tensors.items()}

    @cached_property
    def _table(self) -> tuple[list, list]:
        """transformers' conversion table: entries that rename, and entries that join or split."""
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
        """The parameter that each tensor becomes, with the matching pattern if it is joined."""
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
    """Build the base's model, or one with the same configuration and another head."""
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
    """Return a configuration without the settings listed in `LEFT_OUT`, at any depth."""
    settings: dict[str, object] = {}
    for key, value in config.items():
        if key in LEFT_OUT:
            continue
        settings[key] = _without_reach(value) if isinstance(value, dict) else value
    return settings


def _is_plausible(base: Checkpoint) -> bool:
    """Return True if the configuration asks for no more modules than the files have tensors."""
    # Each module is a Python object, and an untrusted configuration could ask for a billion.
    largest = max(100, len(base.where))
    for key, value in _items(base.config):
        if isinstance(value, int) and value > largest and COUNT.fullmatch(key):
            return False
    return True


def _items(config: Mapping[str, object]) -> list[tuple[str, object]]:
    """Return the settings of a configuration and of the ones nested in it."""
    items: list[tuple[str, object]] = []
    for key, value in config.items():
        items.append((str(key), value))
        if isinstance(value, dict):
            items += _items(value)
    return items


def _natural(name: str) -> list[tuple[int, str]]:
    """Return a sort key that puts `experts.10` after `experts.9`."""
    key: list[tuple[int, str]] = []
    for word in name.split("."):
        if word.isdigit():
            key.append((int(word), ""))
        else:
            key.append((-1, word))
    return key
