"""The mapping from an adapter's layer names to the weights in a checkpoint.

Adapters use the names of a model in memory. A model for classification or generation
contains the base model under a prefix (`bert.encoder…`), which either the adapter or the
checkpoint may lack. In addition, transformers renames the tensors of some checkpoints
during loading. For example, `attention.attention.query` of DINOv2 is `attention.q_proj`
in memory. Such renamings are looked up only as a last resort, because that requires
importing transformers.
"""

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from perdure.checkpoints.base import Checkpoint
from perdure.checkpoints.skeleton import Skeleton
from perdure.errors import CheckpointError

LONGEST = 300  # characters of a name that are compared
MOST = 2000  # names that are compared


@dataclass(frozen=True)
class LayerNames:
    """A mapping from the layer names in an adapter to the names of weights in a checkpoint.

    Attributes
    ----------
    tensors
        The name of each weight in the checkpoint, by layer name. The layer names are
        those of the checkpoint or, if transformers renames layers during loading, those
        of transformers.
    used, stored
        The prefix of layer names in the adapter, and the prefix that replaces it in `tensors`.
    """

    tensors: Mapping[str, str]
    used: str = ""
    stored: str = ""

    def tensor(self, layer: str) -> str | None:
        """Return the checkpoint's name for the weight of a layer in the adapter, or None."""
        if layer in self.tensors:
            return self.tensors[layer]
        stem = layer.removeprefix(self.used)
        return self.tensors.get(self.stored + stem)

    def layer(self, tensor: str) -> str:
        """Return the adapter's name for the layer to which a weight in the checkpoint belongs."""
        stem = next(stem for stem, name in self.tensors.items() if name == tensor)
        return self.used + stem.removeprefix(self.stored)


def match(
    layers: Iterable[str],
    base: Checkpoint,
    folder: object,
    skeleton: Skeleton,
) -> LayerNames:
    """Find the weight in the checkpoint for each layer of an adapter.

    A layer may also be matched to a tied output weight that is not stored in the checkpoint.

    Parameters
    ----------
    folder
        The adapter's folder, for error messages.

    Raises
    ------
    CheckpointError
        The checkpoint has no weight for a layer, or the match is ambiguous.
    """
    layers = list(layers)
    stems = _stems({name: name for name in base.where})
    names = _with_prefix(layers, stems)
    if names is None:
        # As a last resort, ask transformers which weights are tied and which are renamed.
        tied = _stems({name: name for name in skeleton.ties})
        names = _with_prefix(layers, tied | stems)
        if names is None:
            renamed = _stems(skeleton.tensors)
            names = _with_prefix(layers, tied | renamed)
    if names is None:
        unknown = [layer for layer in layers if layer not in stems]
        layer = unknown[0] if unknown else layers[0]
        nearest = _nearest(f"{layer}.weight", base.where)
        raise CheckpointError(
            f"`{folder}` changes the layer `{layer}`, but `{base.folder}` has no weight of that "
            f"name, with or without a prefix (closest: `{nearest}`). The adapter belongs to "
            "another model, or the layer is tied to another one, or is stored in a different form "
            "than the one in which transformers loads it."
        )
    return names


def _nearest(name: str, names: Iterable[str]) -> str:
    """Return the most similar name, for an error message."""
    # A comparison takes quadratic time in the length, and names in a file may have any length.
    candidates = [other for other in names if len(other) < LONGEST]
    suffix = _last_two(name)
    alike = [other for other in candidates if _last_two(other) == suffix]
    candidates = alike or candidates
    nearest = difflib.get_close_matches(
        name[:LONGEST],
        candidates[:MOST],
        n=1,
        cutoff=0,
    )
    return nearest[0] if nearest else "none"


def _last_two(name: str) -> list[str]:
    return name.split(".")[-2:]


def _stems(tensors: Mapping[str, str]) -> dict[str, str]:
    """Return the tensors whose names end in `.weight`, by layer name."""
    stems: dict[str, str] = {}
    for name, tensor in tensors.items():
        if name.endswith(".weight"):
            stems[name.removesuffix(".weight")] = tensor
    return stems


def _with_prefix(layers: list[str], stems: Mapping[str, str]) -> LayerNames | None:
    """Find the change of prefix that makes all layer names match a name in `stems`.

    Layers whose names are already in `stems` are not renamed. Return None if no change of
    prefix works, or if several do, which would be ambiguous.
    """
    changes: set[tuple[str, str]] | None = None
    for layer in layers:
        if layer in stems:
            continue
        possible: set[tuple[str, str]] = set()
        first, _, remainder = layer.partition(".")
        if remainder in stems:
            possible.add((f"{first}.", ""))
        for stem in stems:
            if stem.endswith(f".{layer}"):
                prefix = stem.removesuffix(layer)
                # A prefix is a single name followed by a dot, not a path.
                if prefix.count(".") == 1:
                    possible.add(("", prefix))
        changes = possible if changes is None else changes & possible
    if changes is None:
        return LayerNames(stems)
    if len(changes) != 1:
        return None
    used, stored = changes.pop()
    return LayerNames(stems, used, stored)
