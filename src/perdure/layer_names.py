"""Which tensor of a checkpoint is the weight of which layer, for adapters that name layers as a model in memory does.

A model for classification or generation holds the base model under a prefix (`bert.encoder…`) that a checkpoint of the
base model alone has not, or the other way round. And transformers renames the tensors of some checkpoints while it
loads them (`attention.attention.query` of DINOv2 is `attention.q_proj` in memory); its own table is asked only when
names are not found otherwise, because that loads transformers.
"""

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from perdure.checkpoint import Checkpoint
from perdure.errors import CheckpointError


@dataclass(frozen=True)
class LayerNames:
    """How an adapter spells the layers of a checkpoint.

    Attributes
    ----------
    tensors
        Of each weight in the checkpoint, by the layer's name without a prefix that only the adapter has.
    used, stored
        The prefix that the adapter's names have before them, and the one that those of the checkpoint have.
    """

    tensors: Mapping[str, str]
    used: str = ""
    stored: str = ""

    def tensor(self, layer: str) -> str | None:
        """The name of the layer's weight in the checkpoint."""
        return self.tensors.get(layer) or self.tensors.get(self.stored + layer.removeprefix(self.used))

    def layer(self, tensor: str) -> str:
        """What the adapter calls the layer of a weight."""
        stem = next(stem for stem, found in self.tensors.items() if found == tensor)
        return self.used + stem.removeprefix(self.stored)


def match(layers: Iterable[str], base: Checkpoint, folder: object) -> LayerNames:
    """Find the weights of an adapter's layers.

    Raises
    ------
    CheckpointError
        The checkpoint has no weight for a layer, or several could be meant.
    """
    layers = list(layers)
    stems = {name.removesuffix(".weight"): name for name in base.where if name.endswith(".weight")}
    names = _with_prefix(layers, stems)
    renamed = {} if names else _renamed(base)
    names = names or _with_prefix(layers, renamed)
    if names is None:
        lost = next((layer for layer in layers if layer not in stems), layers[0])
        near = difflib.get_close_matches(f"{lost}.weight", base.where, n=1, cutoff=0)
        raise CheckpointError(
            f"`{folder}` changes the layer `{lost}`, but `{base.folder}` has no weight of that name, with or without "
            f"a prefix (nearest: `{near[0] if near else 'none'}`). The adapter belongs to another model, or the layer "
            "is tied to another, or is stored in another form than transformers loads it in."
        )
    return names


def _with_prefix(layers: list[str], stems: Mapping[str, str]) -> LayerNames | None:
    """The one change of prefix with which all layers are found; those found exactly need none."""
    changes: set[tuple[str, str]] | None = None
    for layer in layers:
        if layer in stems:
            continue
        first, _, rest = layer.partition(".")
        possible = {(f"{first}.", "")} if rest in stems else set()
        ends = [stem.removesuffix(layer) for stem in stems if stem.endswith(f".{layer}")]
        possible |= {("", prefix) for prefix in ends if prefix.count(".") == 1}
        changes = possible if changes is None else changes & possible
    if changes is None:
        return LayerNames(stems)
    return LayerNames(stems, *changes.pop()) if len(changes) == 1 else None


def _renamed(base: Checkpoint) -> dict[str, str]:
    """The tensor of each layer by the name that transformers gives it; only those that are taken as they are."""
    try:
        import torch
        import transformers
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import WeightRenaming, rename_source_key

        config = transformers.AutoConfig.from_pretrained(base.folder, trust_remote_code=False)
        kind: Any = getattr(transformers, (config.architectures or ["AutoModel"])[0], transformers.AutoModel)
        with torch.device("meta"):
            model = (kind.from_config if kind is transformers.AutoModel else kind._from_config)(config)
        table = get_model_conversion_mapping(model)
        renamings = [entry for entry in table if isinstance(entry, WeightRenaming)]
        others: Any = [entry for entry in table if not isinstance(entry, WeightRenaming)]
        state = model.state_dict()
        found = {}
        for name in base.where:
            new, converted = rename_source_key(name, renamings, others, model.base_model_prefix, state)
            if converted is None and new.endswith(".weight"):
                found[new.removesuffix(".weight")] = name
    except Exception:  # whatever transformers makes of a configuration from elsewhere, or of a table of another form
        return {}
    return found
