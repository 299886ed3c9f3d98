"""The comparison of an adapter's file with the layers that its configuration names."""

import warnings
from collections.abc import Iterable

from perdure.checkpoints import auto_class, experts
from perdure.checkpoints.base import Checkpoint
from perdure.checkpoints.layer_names import LayerNames
from perdure.checkpoints.peft_folder import PeftFolder
from perdure.checkpoints.skeleton import Skeleton
from perdure.errors import PerdureWarning

# The largest number of layers that a sentence names.
SHOWN = 5


def notes(
    folder: PeftFolder,
    name: str,
    names: LayerNames,
    skeleton: Skeleton,
) -> tuple[str, ...]:
    """Warn of layers that are missing from the file, or not named by the configuration.

    Returns
    -------
    The warnings as sentences for the model card.
    """
    sentences: list[str] = []
    # A missing layer is no error, because peft loads such a file, too: its B stays 0.
    missing = _missing(skeleton.base, folder, names)
    missing += experts.missing(folder, skeleton)
    if missing:
        total = len(missing) + len(folder.factors) + len(folder.wrapped)
        sentences.append(
            f"The file of the adapter `{name}` lacks {len(missing)} of the {total} layers that "
            f"its configuration targets: {_listed(missing)}. They stay as they are in the base."
        )
    if folder.untargeted:
        sentences.append(
            f"The file of the adapter `{name}` has factors of layers that its configuration does "
            f"not target: {_listed(folder.untargeted)}. "
            "They are left out, as peft leaves them out."
        )
    for sentence in sentences:
        warnings.warn(sentence, PerdureWarning, stacklevel=4)
    return tuple(sentences)


def _missing(base: Checkpoint, folder: PeftFolder, names: LayerNames) -> list[str]:
    """Return the layers that are targeted, but have no factors in the file."""
    missing: list[str] = []
    for stem, tensor in names.tensors.items():
        if not stem.startswith(names.stored):
            continue
        # The weight of a tied layer may be stored under the other's name only.
        if tensor not in base.where:
            continue
        # Norms and biases have one dimension: peft has no LoRA for them.
        if len(base.stored(tensor).shape) < 2:
            continue
        layer = names.used + stem.removeprefix(names.stored)
        if layer not in folder.factors and folder.targets.named(layer):
            missing.append(layer)
    # To ask transformers takes seconds: only if there is a reason to.
    return _existing(base, folder, missing) if missing else []


def _existing(base: Checkpoint, folder: PeftFolder, layers: list[str]) -> list[str]:
    """Return the layers that exist in the model in memory that the adapter was trained with.

    The base may have more, such as the output layer of another task, and transformers may join
    several of them into one.
    """
    kind = auto_class.of_task(folder.config.get("task_type"))
    if kind is None:
        # peft writes the class of the model where the adapter has no `task_type`.
        mapping = folder.config.get("auto_mapping")
        if isinstance(mapping, dict):
            name = mapping.get("base_model_class")
            kind = name if isinstance(name, str) else None
    model = Skeleton(base, kind).model
    if model is None:
        return layers
    modules = {name for name, module in model.named_modules() if hasattr(module, "weight")}
    return [layer for layer in layers if layer in modules]


def _listed(layers: Iterable[str]) -> str:
    names = [f"`{layer}`" for layer in layers]
    shown = ", ".join(names[:SHOWN])
    more = len(names) - SHOWN
    if more > 0:
        return f"{shown} and {more} more"
    return shown
