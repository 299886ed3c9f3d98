"""Whether an adapter's file and its configuration speak of the same layers."""

import warnings
from collections.abc import Iterable

from perdure.checkpoints import auto_class, experts
from perdure.checkpoints.base import Checkpoint
from perdure.checkpoints.layer_names import LayerNames
from perdure.checkpoints.peft_folder import PeftFolder
from perdure.checkpoints.skeleton import Skeleton
from perdure.errors import PerdureWarning

SHOWN = 5
"""Names of layers in a sentence."""


def notes(folder: PeftFolder, name: str, names: LayerNames, skeleton: Skeleton) -> tuple[str, ...]:
    """Say what the file lacks and what it has beyond the configuration, as warnings, and as sentences for the card."""
    said: list[str] = []
    lost = _missing(skeleton.base, folder, names) + experts.missing(folder, skeleton)
    if lost:
        total = len(lost) + len(folder.factors) + len(folder.wrapped)
        said.append(
            f"The file of the adapter `{name}` lacks {len(lost)} of the {total} layers that its configuration "
            f"targets: {_listed(lost)}. They stay as they are in the base."
        )
    if folder.untargeted:
        said.append(
            f"The file of the adapter `{name}` has factors of layers that its configuration does not target: "
            f"{_listed(folder.untargeted)}. They are left out, as peft leaves them out."
        )
    for sentence in said:
        warnings.warn(sentence, PerdureWarning, stacklevel=4)
    return tuple(said)


def _missing(base: Checkpoint, folder: PeftFolder, names: LayerNames) -> list[str]:
    """The layers that are targeted, and of which the file has no factors."""
    lost: list[str] = []
    for stem, tensor in names.tensors.items():
        if (
            not stem.startswith(names.stored)
            or tensor not in base.where
            or len(base.stored(tensor).shape) < 2
        ):
            continue
        layer = names.used + stem.removeprefix(names.stored)
        if layer not in folder.factors and folder.targets.named(layer):
            lost.append(layer)
    return _existing(base, folder, lost) if lost else []


def _existing(base: Checkpoint, folder: PeftFolder, layers: list[str]) -> list[str]:
    """Those of the layers that are layers in memory of the model which the adapter was trained with.

    The base may have more, such as the output layer of another task, and transformers may join several into one.
    """
    kind = auto_class.of_task(folder.config.get("task_type"))
    if kind is None:
        stated = folder.config.get("auto_mapping")
        kind = stated.get("base_model_class") if isinstance(stated, dict) else None
    model = Skeleton(base, kind).model
    if model is None:
        return layers
    modules = {name for name, module in model.named_modules() if hasattr(module, "weight")}
    return [layer for layer in layers if layer in modules]


def _listed(layers: Iterable[str]) -> str:
    names = [f"`{layer}`" for layer in layers]
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
