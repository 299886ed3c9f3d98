"""The weight in a checkpoint of each layer that an adapter names.

An adapter names layers as a model in memory does. A model for classification or generation holds
the base model under a prefix (`bert.encoder…`) that a checkpoint of the base model alone lacks, or
the other way round. And transformers renames the tensors of some checkpoints while it loads them:
`attention.attention.query` of DINOv2 is `attention.q_proj` in memory. Its table is consulted only
for names that cannot be resolved otherwise, because it requires importing transformers.
"""

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from perdure.checkpoints.base import Checkpoint
from perdure.checkpoints.skeleton import Skeleton
from perdure.errors import CheckpointError

LONGEST = 300  # characters of a name that is compared
MOST = 2000  # names that are compared


@dataclass(frozen=True)
class LayerNames:
    """The spelling of a checkpoint's layers in an adapter.

    Attributes
    ----------
    tensors
        The name of each weight in the checkpoint, by the name of its layer there.
    used, stored
        The prefix of the adapter's names, and the one that those of the checkpoint have instead.
    """

    tensors: Mapping[str, str]
    used: str = ""
    stored: str = ""

    def tensor(self, layer: str) -> str | None:
        """Return the name in the checkpoint of the weight of an adapter's layer."""
        if layer in self.tensors:
            return self.tensors[layer]
        stem = layer.removeprefix(self.used)
        return self.tensors.get(self.stored + stem)

    def layer(self, tensor: str) -> str:
        """Return the adapter's name for the layer of a weight."""
        stem = next(stem for stem, name in self.tensors.items() if name == tensor)
        return self.used + stem.removeprefix(self.stored)


def match(
    layers: Iterable[str],
    base: Checkpoint,
    folder: object,
    skeleton: Skeleton,
) -> LayerNames:
    """Find the weights of an adapter's layers.

    The weight of a tied output layer is one that the base does not store.

    Parameters
    ----------
    folder
        The adapter's folder, for the error.

    Raises
    ------
    CheckpointError
        The checkpoint has no weight for a layer, or several could be meant.
    """
    layers = list(layers)
    stems = _stems({name: name for name in base.where})
    names = _with_prefix(layers, stems)
    if names is None:
        # From here on transformers is asked: which weights are tied, and which were renamed.
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
            f"name, with or without a prefix (nearest: `{nearest}`). The adapter belongs to "
            "another model, or the layer is tied to another, or is stored in another form than "
            "transformers loads it in."
        )
    return names


def _nearest(name: str, names: Iterable[str]) -> str:
    """Return the most similar name, for a message."""
    # To compare takes the square of the length in time, and a file may hold names of any length.
    candidates = [other for other in names if len(other) < LONGEST]
    end = _last_two(name)
    alike = [other for other in candidates if _last_two(other) == end]
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
    """Return the tensors that are the weight of a layer, by the name of the layer."""
    stems: dict[str, str] = {}
    for name, tensor in tensors.items():
        if name.endswith(".weight"):
            stems[name.removesuffix(".weight")] = tensor
    return stems


def _with_prefix(layers: list[str], stems: Mapping[str, str]) -> LayerNames | None:
    """Return the names with the one change of prefix that makes all layers known.

    Layers that are known as they are need no change. If no single change of prefix works, or
    several do, it is ambiguous which weights are meant.
    """
    changes: set[tuple[str, str]] | None = None
    for layer in layers:
        if layer in stems:
            continue
        possible: set[tuple[str, str]] = set()
        first, _, rest = layer.partition(".")
        if rest in stems:
            possible.add((f"{first}.", ""))
        for stem in stems:
            if stem.endswith(f".{layer}"):
                prefix = stem.removesuffix(layer)
                # A prefix is one name with its dot, not a path.
                if prefix.count(".") == 1:
                    possible.add(("", prefix))
        changes = possible if changes is None else changes & possible
    if changes is None:
        return LayerNames(stems)
    if len(changes) != 1:
        return None
    used, stored = changes.pop()
    return LayerNames(stems, used, stored)
