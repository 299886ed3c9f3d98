"""The base as transformers builds it, without memory for its values.

Files alone do not show whether a square weight belongs to an `nn.Linear` or to a `Conv1D`, which
tables are one and the same, or how tensors are renamed and joined while they are loaded. Asking
transformers takes seconds, so this is built only if one of these questions comes up.
"""

import re
from collections.abc import Mapping
from functools import cached_property
from typing import Any

from perdure.checkpoints.base import Checkpoint

# Model types whose blocks have layers of the kind `Conv1D`, which store W as in × out.
CONV1D = (
    "clvp_decoder",
    "decision_transformer",
    "gpt2",
    "imagegpt",
    "openai-gpt",
)
# Settings that name code or weights elsewhere, or make a list of a number of labels of any size.
LEFT_OUT = (
    "auto_map",
    "custom_pipelines",
    "use_pretrained_backbone",
    "num_labels",
    "_num_labels",
)
# The names of settings that are a number of modules.
COUNT = re.compile(r"(n|num|encoder|decoder)_.*(layers?|blocks?|experts?)")


class Skeleton:
    """The things transformers knows about a base; empty for an unknown architecture.

    Parameters
    ----------
    kind
        The class of transformers that builds it; by default the one that the base names.
    """

    def __init__(self, base: Checkpoint, kind: str | None = None) -> None:
        self.base = base
        self._kind = kind

    def may_have_conv1d(self) -> bool:
        """Return whether a model of the base, or one inside it, is of a type that has `Conv1D`."""
        # A model of text and images has the configurations of two models in its own.
        for key, value in _items(self.base.config):
            if key == "model_type" and value in CONV1D:
                return True
        return False

    def is_conv1d(self, tensor: str) -> bool | None:
        """Return whether a weight of the base belongs to a `Conv1D`; None if that is unknown."""
        if self.model is None or tensor not in self._spelled:
            return None
        from transformers.pytorch_utils import Conv1D

        name = self._spelled[tensor].rpartition(".")[0]
        module = self.model.get_submodule(name)
        return isinstance(module, Conv1D)

    @cached_property
    def model(self) -> Any:
        """The model of transformers, on the device `meta`; None if it cannot be built."""
        if not _is_plausible(self.base):
            return None
        try:
            return _build(self.base, self._kind)
        except Exception:
            # A configuration from elsewhere may make transformers raise anything.
            return None

    @cached_property
    def tensors(self) -> dict[str, str]:
        """The tensors that are loaded as they are, by the name that transformers gives them."""
        tensors: dict[str, str] = {}
        for tensor, (name, pattern) in self._loaded.items():
            if pattern is None:
                tensors[name] = tensor
        return tensors

    @cached_property
    def joined(self) -> dict[str, dict[str, list[str]]]:
        """The tensors that are joined into one parameter while they are loaded.

        The keys are the name of the parameter, and the pattern in transformers' table that the
        tensors match. The tensors are in the order in which transformers concatenates them.
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
        """Return how tensors of a pattern are joined: the patterns in order, and the steps."""
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
        """The parameters that are tied to another one, both by their names in the base."""
        tied = getattr(self.model, "all_tied_weights_keys", None) or {}
        ties: dict[str, str] = {}
        for name, other in tied.items():
            stored = self.stored(name)
            ties[stored] = self.stored(other)
        return ties

    @cached_property
    def tables(self) -> set[str]:
        """The parameters with a row for each token: the embeddings of input and output."""
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
        """Return the name of a parameter in the base; the same name if the base lacks it."""
        return self.tensors.get(name, name)

    @cached_property
    def _spelled(self) -> dict[str, str]:
        """The names that transformers gives to the tensors of the base."""
        return {tensor: name for name, tensor in self.tensors.items()}

    @cached_property
    def _table(self) -> tuple[list, list]:
        """The table of transformers: the entries that rename, and those that join or split."""
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
        """The parameter that each tensor becomes, and the pattern of those that are joined."""
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
            # The table is private to transformers, and another version may have another form.
            return {}


def _build(base: Checkpoint, architecture: str | None) -> Any:
    """Build the model of a base, or one of the same configuration with another head."""
    import torch
    import transformers
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    settings = _without_reach(base.config)
    config_class = CONFIG_MAPPING[base.config["model_type"]]
    config = config_class.from_dict(settings)
    name = architecture or (config.architectures or ["AutoModel"])[0]
    kind = getattr(transformers, name, None) or transformers.AutoModel
    # `from_config` of an `AutoModel…` finds the class first; a class has only the private method.
    from_config = getattr(kind, "_from_config", None) or kind.from_config
    # On `meta` a tensor has a shape and no memory: a model of any size is built at once.
    with torch.device("meta"):
        return from_config(config)


def _without_reach(config: Mapping[str, object]) -> dict[str, object]:
    """Return a configuration without the settings that reach beyond the model's own layers."""
    settings: dict[str, object] = {}
    for key, value in config.items():
        if key in LEFT_OUT:
            continue
        settings[key] = _without_reach(value) if isinstance(value, dict) else value
    return settings


def _is_plausible(base: Checkpoint) -> bool:
    """Return whether the configuration has no more layers than the files have tensors."""
    # Each module is a Python object: a stranger's configuration could ask for a billion of them.
    largest = max(100, len(base.where))
    for key, value in _items(base.config):
        if isinstance(value, int) and value > largest and COUNT.fullmatch(key):
            return False
    return True


def _items(config: Mapping[str, object]) -> list[tuple[str, object]]:
    """Return the settings of a configuration and of those within it."""
    items: list[tuple[str, object]] = []
    for key, value in config.items():
        items.append((str(key), value))
        if isinstance(value, dict):
            items += _items(value)
    return items


def _natural(name: str) -> list[tuple[int, str]]:
    """Return a key under which `experts.10` comes after `experts.9`."""
    key: list[tuple[int, str]] = []
    for word in name.split("."):
        if word.isdigit():
            key.append((int(word), ""))
        else:
            key.append((-1, word))
    return key
