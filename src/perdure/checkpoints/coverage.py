"""The comparison of an adapter's tensors with the layers that its configuration targets."""

import warnings
from collections.abc import Iterable

from perdure.checkpoints import auto_class, experts
from perdure.checkpoints.base import Checkpoint
from perdure.checkpoints.layer_names import LayerNames
from perdure.checkpoints.peft_folder import PeftFolder
from perdure.checkpoints.skeleton import Skeleton
from perdure.errors import PerdureWarning

# The largest number of layers to list in a message.
SHOWN = 5


def notes(
    folder: PeftFolder,
    name: str,
    names: LayerNames,
    skeleton: Skeleton,
) -> tuple[str, ...]:
    """Warn about targeted layers that an adapter lacks and untargeted layers that it has.

    Returns
    -------
    The warning messages, for use in the model card.
    """
    messages: list[str] = []
    # A missing layer is not an error, because peft also loads such a file, and sets B to 0.
    missing = _missing(skeleton.base, folder, names)
    missing += experts.missing(folder, skeleton)
    if missing:
        total = len(missing) + len(folder.factors) + len(folder.wrapped)
        messages.append(
            f"The adapter `{name}` lacks {len(missing)} of the {total} layers that its "
            f"configuration targets: {_listed(missing)}. These keep the base's weights."
        )
    if folder.untargeted:
        messages.append(
            f"The adapter `{name}` has factors for layers that its configuration does not "
            f"target: {_listed(folder.untargeted)}. They are ignored, as in peft."
        )
    for message in messages:
        warnings.warn(message, PerdureWarning, stacklevel=4)
    return tuple(messages)


def _missing(base: Checkpoint, folder: PeftFolder, names: LayerNames) -> list[str]:
    """Return the layers that are targeted but have no factors in the adapter's file."""
    missing: list[str] = []
    for stem, tensor in names.tensors.items():
        if not stem.startswith(names.stored):
            continue
        # The weight of a tied layer may be stored only under the name of the other layer.
        if tensor not in base.where:
            continue
        # Norms and biases have one dimension, for which peft has no LoRA.
        if len(base.stored(tensor).shape) < 2:
            continue
        layer = names.used + stem.removeprefix(names.stored)
        if layer not in folder.factors and folder.targets.named(layer):
            missing.append(layer)
    # Building the model in transformers takes seconds, so do it only if necessary.
    return _existing(base, folder, missing) if missing else []


def _existing(base: Checkpoint, folder: PeftFolder, layers: list[str]) -> list[str]:
    """Return only those layers that exist in the adapter's model as loaded by transformers.

    The base model on disk may have additional layers, such as the output layer for
    another task, and transformers may join several stored layers into one.
    """
    kind = auto_class.of_task(folder.config.get("task_type"))
    if kind is None:
        # If the adapter has no `task_type`, peft saves the model's class.
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
