"""Export a run's combined model for other tools, as a stock checkpoint or as one adapter."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from torch import nn

from perdure.checkpoints import export as peft_folder
from perdure.checkpoints.export import Layer
from perdure.errors import InputError, NotFinite, RunError
from perdure.evaluation.system import System
from perdure.merging.combine import Combined
from perdure.merging.rule_settings import Rule
from perdure.models import adapters, pretrained, quantised
from perdure.models.backbone import Backbone
from perdure.models.matrices import is_matrix, is_transposed
from perdure.runs.export_card import Exported, card
from perdure.runs.export_heads import ComputedHeads, replaced
from perdure.storage import files, staging
from perdure.vectors.task_vector import LowRank, TaskVector

Form = Literal["model", "adapter"]
RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""The ranks that vLLM supports (`max_lora_rank`)."""


@dataclass(frozen=True, kw_only=True)
class Export:
    """A model to export, its destination and its model card.

    Attributes
    ----------
    about
        The description of the exported folder for its model card.
    heads
        The heads that the exported model has in place of those of the run.
    check
        Called before the finished folder is moved into place; it raises an error if a
        task has been forgotten in the meantime.
    """

    system: System
    combined: Combined
    output: Path
    about: Exported
    heads: ComputedHeads
    check: Callable[[], None]


def check_exportable(rule: Rule, form: Form, dtype: object) -> None:
    """Check that a rule produces a single set of weights that can be exported in the given form.

    Parameters
    ----------
    dtype
        The data type of the weights in memory, as given in the recipe.

    Raises
    ------
    RunError
        The rule is routed or combines in factor space; or `form` is `model` and the
        weights are stored in 4 bits.
    """
    if form == "model" and dtype == quantised.NF4:
        raise RunError(
            f"The run's base model was loaded with `dtype: {dtype}`, and nothing can be merged "
            "into 4-bit weights. Export an adapter for the base model instead: `--as adapter`."
        )
    if rule.routed or rule.space == "factor":
        why = "is routed" if rule.routed else "combines in factor space"
        raise RunError(
            f"The rule `{rule.label}` {why}, so there is no single set of weights to export. "
            "Choose another with `--rule`, such as `task_arithmetic` in delta space."
        )


# -- a stock checkpoint


def write_model(export: Export) -> Exported:
    """Write a stock checkpoint with the combined weights, and with all heads joined into one.

    It returns the description in the model card.

    Raises
    ------
    NotFinite
        The combined weights contain values that are not finite.
    RunError
        A head is not a linear function of the features.
    """
    system = export.system
    backbone = system.backbone
    # A stock checkpoint has no adapters; the combined change is added to the weights below.
    adapters.detach(backbone.model)
    parameters = list(backbone.model.parameters())
    size = sum(value.numel() * value.element_size() for value in parameters)
    tasks = system.tasks
    if system.shares_head:
        # All tasks share one head, so one task's head is enough.
        tasks = tasks[:1]
    with (
        # The change is added to half-precision weights in single precision.
        pretrained.stored_as(backbone.model, torch.float32),
        replaced(backbone, export.heads),
        staging.new_folder(export.output, size=size, check=export.check) as folder,
        export.combined.applied(backbone),
    ):
        _check_finite(backbone, system.rule)
        backbone.save(folder, tasks, _labels(system))
        files.put(folder / "README.md", card(export.about))
    return export.about


def _check_finite(backbone: Backbone, rule: Rule) -> None:
    for name, value in backbone.model.named_parameters():
        if not value.isfinite().all():
            raise NotFinite(
                f"The rule `{rule.label}` makes `{name}` infinite or undefined. "
                "Choose other settings, such as a `scale` nearer to 1, or another rule."
            )


def _labels(system: System) -> list[str]:
    """Return the label of each output, prefixed with its task if several tasks have that label."""
    if system.shares_head:
        return list(next(iter(system.classes.values())))
    tasks_with = Counter[str]()
    for classes in system.classes.values():
        tasks_with.update(classes)
    labels = []
    for task, classes in system.classes.items():
        for label in classes:
            labels.append(label if tasks_with[label] == 1 else f"{task}/{label}")
    return labels


# -- one adapter


def check_adapter(backbone: Backbone) -> None:
    """Raise `InputError` if the model answers by heads, which an adapter cannot contain."""
    if backbone.has_heads:
        raise InputError(
            "`--as adapter` is for language models: one adapter would lack the heads with which "
            f"`{backbone.source}` answers. Export the model (`--as model`), or use the folders "
            "`tasks/*/adapter` of the run, each with the head of its task."
        )


def write_adapter(export: Export, *, rank: int | None = None, pad_rank: bool = False) -> Exported:
    """Write the combined change as one LoRA adapter of the base model, which stock peft loads.

    It returns the description in the model card.

    Parameters
    ----------
    rank
        Replace each layer's change by the closest matrix of this rank. By default, the
        change is written exactly.
    pad_rank
        If True, pad all layers with zeros to the same rank, one of `RANKS`. The change
        stays the same.

    Raises
    ------
    InputError
        The change does not fit into a LoRA adapter: it is not a low-rank change of linear
        layers, or its rank is too high for vLLM (with `pad_rank`).
    """
    backbone = export.system.backbone
    changes, left_out = _changes(backbone.model, export.combined.vectors, rank)
    if pad_rank:
        changes = _padded(changes)
    tensors = peft_folder.tensors(changes)
    layers = [adapters.base_layer(backbone.model, layer.name) for layer in changes]
    stated = {
        "base_model_name_or_path": backbone.published,
        "task_type": backbone.task_type,
        "fan_in_fan_out": any(map(is_transposed, layers)),
        "modules_to_save": None,
    }
    configuration = peft_folder.config(changes, stated)
    about = replace(export.about, form="adapter", left_out=left_out)
    size = sum(value.numel() * value.element_size() for value in tensors.values())
    with staging.new_folder(export.output, size=size, check=export.check) as folder:
        peft_folder.write(folder, configuration, tensors)
        files.put(folder / "README.md", card(about))
    return about


def _changes(
    model: nn.Module, vector: object, rank: int | None
) -> tuple[dict[Layer, LowRank], float]:
    """Return each layer's change, and the share of the total norm lost by truncating to `rank`."""
    # `check_exportable` has already refused the rules that produce something else.
    entries = vector.items() if isinstance(vector, TaskVector) else ()
    changes: dict[Layer, LowRank] = {}
    left_out = 0.0
    whole = 0.0
    for name, entry in entries:
        if name.endswith(".bias") or not is_matrix(adapters.base_layer(model, name)):
            raise InputError(
                f"The run changes `{name}`, which a LoRA adapter cannot contain: it is not the "
                "weight of a linear layer. Export the model (`--as model`)."
            )
        change, layer_left_out, layer_whole = peft_folder.truncated(entry, rank)
        left_out += layer_left_out
        whole += layer_whole
        layer = Layer(name=name, shape=tuple(entry.shape), embedding=False)
        changes[layer] = change
    if not changes:
        raise InputError("The rule changes no layer of the model, so there is no adapter to write.")
    return changes, (left_out / whole) ** 0.5 if whole else 0.0


def _padded(changes: dict[Layer, LowRank]) -> dict[Layer, LowRank]:
    """Pad all changes to the same rank: the lowest rank in `RANKS` that is high enough."""
    highest = max(change.rank for change in changes.values())
    enough = [rank for rank in RANKS if rank >= highest]
    if not enough:
        raise InputError(
            f"The combined change has rank {highest}, but vLLM supports at most {RANKS[-1]}. "
            f"Reduce it with `--rank {RANKS[-1]}`, or export the model (`--as model`)."
        )
    return {layer: change.padded(enough[0]) for layer, change in changes.items()}
