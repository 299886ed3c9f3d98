"""The base as transformers builds it, without memory for its values.

Files alone do not tell whether a square weight belongs to an `nn.Linear` or to a `Conv1D`, which
tables are one and the same, or how tensors are renamed and joined while they are loaded. Asking
transformers takes seconds, so this is built only when one of these questions comes up.
"""

import re
from collections.abc import Mapping
from functools import cached_property
from typing import Any

from perdure.checkpoints.base import Checkpoint

# Model types whose blocks have layers of the kind `Conv1D`, which store W as in × out.
CONV1D = ("clvp_decoder", "decision_transformer", "gpt2", "imagegpt", "openai-gpt")
LEFT_OUT = ("auto_map", "custom_pipelines", "use_pretrained_backbone", "num_labels", "_num_labels")
COUNT = re.compile(r"(n|num|encoder|decoder)_.*(layers?|blocks?|experts?)")
"""What a setting is called that says how many modules there are."""


class Skeleton:
    """What transformers knows of a base; nothing, where it does not know the architecture.

    Parameters
    ----------
    kind
        The class of transformers that builds it; by default the one that the base names.
    """

    def __init__(self, base: Checkpoint, kind: Any = None) -> None:
        self.base = base
        self._kind = kind

    def may_have_conv1d(self) -> bool:
        """Return whether a model of the base, or one inside it, is of a type that has `Conv1D`."""
        return any(kind in CONV1D for kind in _values(self.base.config, "model_type"))

    def is_conv1d(self, tensor: str) -> bool | None:
        """Return whether a weight of the base belongs to a `Conv1D`; None if that is not known."""
        if self.model is None or tensor not in self._spelled:
            return None
        from transformers.pytorch_utils import Conv1D

        module = self._spelled[tensor].rpartition(".")[0]
        return isinstance(self.model.get_submodule(module), Conv1D)

    @cached_property
    def model(self) -> Any:
        """The model, on the device `meta`; None if transformers cannot build it."""
        if not _is_plausible(self.base):
            return None
        try:
            return _build(self.base, self._kind)
        except Exception:  # whatever transformers makes of a configuration from elsewhere
            return None

    @cached_property
    def tensors(self) -> dict[str, str]:
        """The tensor of each parameter, by the name that transformers gives it, if it is taken as it is."""
        return {names[0]: tensor for tensor, names in self._loaded.items() if names[1] is None}

    @cached_property
    def joined(self) -> dict[str, dict[str, list[str]]]:
        """The tensors that are joined into one parameter while they are loaded.

        By the parameter's name, and the pattern in transformers' table that a tensor matches. Their
        order is that in which transformers joins them.
        """
        found: dict[str, dict[str, list[str]]] = {}
        for tensor in sorted(self._loaded, key=_natural):
            name, pattern = self._loaded[tensor]
            if pattern is not None:
                found.setdefault(name, {}).setdefault(pattern, []).append(tensor)
        return found

    def operations(self, pattern: str) -> tuple[list[str], list[str]]:
        """Return how tensors of a pattern are joined: the patterns in their order, and the steps."""
        for converter in self._table[1]:
            if pattern in converter.source_patterns:
                steps = [
                    f"{type(step).__name__}({getattr(step, 'dim', '')})"
                    for step in converter.operations
                ]
                return list(converter.source_patterns), steps
        return [], []

    @cached_property
    def ties(self) -> dict[str, str]:
        """The parameters that are another one, by name, as the base has it."""
        ties = getattr(self.model, "all_tied_weights_keys", None) or {}
        return {self.stored(name): self.stored(other) for name, other in ties.items()}

    @cached_property
    def tables(self) -> set[str]:
        """The parameters with a row for each token: those of the input's and the output's embeddings."""
        tables: set[str] = set()
        if self.model is None:
            return tables
        modules = [self.model.get_input_embeddings(), self.model.get_output_embeddings()]
        for name, module in self.model.named_modules():
            if any(module is table for table in modules):
                tables |= {
                    self.stored(f"{name}.{part}")
                    for part, _ in module.named_parameters(recurse=False)
                }
        return tables

    def stored(self, name: str) -> str:
        """Return the name in the base of a parameter; the same, if the base does not have it."""
        return self.tensors.get(name, name)

    @cached_property
    def _spelled(self) -> dict[str, str]:
        return {tensor: name for name, tensor in self.tensors.items()}

    @cached_property
    def _table(self) -> tuple[list[Any], list[Any]]:
        """transformers' own table of what is renamed, and of what is joined or split."""
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import WeightRenaming

        table = get_model_conversion_mapping(self.model)
        renamings = [entry for entry in table if isinstance(entry, WeightRenaming)]
        return renamings, [entry for entry in table if not isinstance(entry, WeightRenaming)]

    @cached_property
    def _loaded(self) -> Mapping[str, tuple[str, str | None]]:
        """The parameter that each tensor becomes, and the pattern of those that are joined with others."""
        if self.model is None:
            return {}
        try:
            from transformers.core_model_loading import rename_source_key

            state = self.model.state_dict()
            prefix = self.model.base_model_prefix
            return {
                name: rename_source_key(name, *self._table, prefix, state)
                for name in self.base.where
            }
        except Exception:  # a table of another form than is known here
            return {}


def _build(base: Checkpoint, name: Any) -> Any:
    import torch
    import transformers
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    values = _without_reach(base.config)
    config = CONFIG_MAPPING[values["model_type"]].from_dict(values)
    name = name or (config.architectures or ["AutoModel"])[0]
    kind: Any = getattr(transformers, name, None) or transformers.AutoModel
    with torch.device("meta"):
        return (
            kind._from_config(config) if hasattr(kind, "_from_config") else kind.from_config(config)
        )


def _without_reach(config: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration without what names code or weights elsewhere, or makes a list of as many labels as it says."""
    values = {key: value for key, value in config.items() if key not in LEFT_OUT}
    return {
        key: _without_reach(value) if isinstance(value, dict) else value
        for key, value in values.items()
    }


def _is_plausible(base: Checkpoint) -> bool:
    """Return whether the configuration has no more layers than the files have tensors."""
    most = max(100, len(base.where))
    for key, value in _items(base.config):
        if isinstance(value, int) and value > most and COUNT.fullmatch(key):
            return False
    return True


def _values(config: Mapping[str, Any], key: str) -> list[Any]:
    return [value for name, value in _items(config) if name == key]


def _items(config: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """The settings of a configuration and of those within it."""
    items: list[tuple[str, Any]] = []
    for key, value in config.items():
        items.append((str(key), value))
        if isinstance(value, dict):
            items += _items(value)
    return items


def _natural(name: str) -> list[tuple[int, str]]:
    """A key under which `experts.10` comes after `experts.9`."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in name.split(".")]
