"""Which tensor of a checkpoint is the weight of which layer, for adapters that name layers as a model in memory does.

A model for classification or generation holds the base model under a prefix (`bert.encoder…`) that a checkpoint of the
base model alone has not, or the other way round. And transformers renames the tensors of some checkpoints while it
loads them (`attention.attention.query` of DINOv2 is `attention.q_proj` in memory); its own table is asked only when
names are not found otherwise, because that loads transformers.
"""

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from perdure.checkpoints.base import Checkpoint
from perdure.checkpoints.skeleton import Skeleton
from perdure.errors import CheckpointError

LONGEST = 300  # characters of a name
MOST = 2000  # names that are compared


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
        return self.tensors.get(layer) or self.tensors.get(
            self.stored + layer.removeprefix(self.used)
        )

    def layer(self, tensor: str) -> str:
        """What the adapter calls the layer of a weight."""
        stem = next(stem for stem, found in self.tensors.items() if found == tensor)
        return self.used + stem.removeprefix(self.stored)


def match(
    layers: Iterable[str], base: Checkpoint, folder: object, skeleton: Skeleton
) -> LayerNames:
    """Find the weights of an adapter's layers; that of a tied output layer is one which the base does not store.

    Raises
    ------
    CheckpointError
        The checkpoint has no weight for a layer, or several could be meant.
    """
    layers = list(layers)
    stems = _stems({name: name for name in base.where})
    names = _with_prefix(layers, stems)
    if names is None:
        tied = _stems({name: name for name in skeleton.ties})
        names = _with_prefix(layers, tied | stems) or _with_prefix(
            layers, tied | _stems(skeleton.tensors)
        )
    if names is None:
        lost = next((layer for layer in layers if layer not in stems), layers[0])
        near = _nearest(f"{lost}.weight", base.where)
        raise CheckpointError(
            f"`{folder}` changes the layer `{lost}`, but `{base.folder}` has no weight of that name, with or without "
            f"a prefix (nearest: `{near}`). The adapter belongs to another model, or the layer "
            "is tied to another, or is stored in another form than transformers loads it in."
        )
    return names


def _nearest(name: str, names: Iterable[str]) -> str:
    """The most similar name, among those of a length that is worth comparing: that takes the square of it in time."""
    end = name.split(".")[-2:]
    likely = [other for other in names if len(other) < LONGEST]
    likely = [other for other in likely if other.split(".")[-2:] == end] or likely
    near = difflib.get_close_matches(name[:LONGEST], likely[:MOST], n=1, cutoff=0)
    return near[0] if near else "none"


def _stems(tensors: Mapping[str, str]) -> dict[str, str]:
    """The tensors that are a layer's weight, by the name of the layer."""
    return {
        name.removesuffix(".weight"): tensor
        for name, tensor in tensors.items()
        if name.endswith(".weight")
    }


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
