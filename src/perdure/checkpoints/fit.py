"""Functions that match adapters to a base model on disk.

Before a rule is applied, they determine which weights each adapter changes and how to
handle tensors in the adapter other than A and B.
"""

import functools
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from perdure.checkpoints import coverage, experts, layer_names, peft_folder
from perdure.checkpoints.base import Checkpoint, last_part
from perdure.checkpoints.layer_names import LayerNames
from perdure.checkpoints.peft_folder import Factors, PeftFolder
from perdure.checkpoints.skeleton import CONV1D, Skeleton
from perdure.checkpoints.weights import Weight
from perdure.errors import CheckpointError, InputError, UnknownName
from perdure.storage.tensors import FLOATS, Stored, TensorFile
from perdure.vectors.task_vector import LowRank, OnDemand, TaskVector

# The names of `Conv1D` layers in GPT-2 and related models.
CONV1D_LAYERS = {"c_attn", "c_proj", "c_fc", "q_attn"}
# The file in which a run may save the input statistics of layers.
STATISTICS = "inputs.safetensors"
BLOCK = 1 << 22  # values compared at a time


@dataclass(frozen=True)
class Fitted:
    """An adapter whose layers have been matched to the weights of the base model.

    Attributes
    ----------
    name
        The name of the adapter, which is unique within the merge.
    factors
        The change to each layer, by the name of the layer's weight in the base model,
        without `.weight`.
    weights
        The location of each layer's weight in the base model, with the same keys as `factors`.
    saved
        Fully trained tensors, by their names in the base model (or in the adapter, if the
        base model lacks them).
    spelled
        The name that the adapter uses for each tensor in `saved`, with the same keys as `saved`.
    grown
        Token tables (one row per token) that were resized before training, by their names
        in the base model.
    notes
        Warnings for the user, in full sentences.
    """

    name: str
    folder: PeftFolder
    names: LayerNames
    factors: Mapping[str, Factors]
    weights: Mapping[str, Weight]
    saved: Mapping[str, Tensor]
    spelled: Mapping[str, str]
    grown: Mapping[str, Tensor]
    notes: tuple[str, ...] = ()

    @property
    def vector(self) -> TaskVector:
        """The task vector, whose factors are read from disk on demand."""
        makers: dict[str, Callable[[], LowRank]] = {}
        for name, factors in self.factors.items():
            makers[name] = functools.partial(getattr, factors, "change")
        return TaskVector(OnDemand(makers))

    @property
    def shapes(self) -> dict[str, tuple[int, int]]:
        """The shape of the change to each layer."""
        return {layer: factors.shape for layer, factors in self.factors.items()}

    @property
    def settings(self) -> str:
        """A description of the adapter's ranks and alphas, such as "rank 8, alpha 16"."""
        return peft_folder.described(self.factors.values())


def fit(
    base: Checkpoint, sources: Sequence[str | Path], skeleton: Skeleton, *, any_base: bool = False
) -> list[Fitted]:
    """Read adapters and find the weights of the base model that they change.

    Raises
    ------
    InputError
        No adapters are given, or one is given twice.
    CheckpointError
        An adapter is damaged, does more than add B A, or belongs to another model.
    """
    if not sources:
        raise InputError("Nothing to merge: give at least one PEFT folder after the base model.")
    folders = [peft_folder.read(source) for source in sources]
    paths: set[Path] = set()
    for folder in folders:
        path = folder.folder.resolve()
        if path in paths:
            raise InputError(f"The adapter `{path}` is given twice.")
        paths.add(path)
    if not any_base:
        for folder in folders:
            _check_base(base, folder)
    names = _names(folders)
    return [_fit(base, folder, name, skeleton) for folder, name in zip(folders, names, strict=True)]


def _names(folders: Sequence[PeftFolder]) -> list[str]:
    """Return a unique name for each adapter, which includes parent folders if necessary."""
    # `en/lora` and `de/lora` are distinguished by the parent folder or, if that is not
    # enough, by their full paths.
    names = [folder.name for folder in folders]
    paths = [folder.folder.resolve() for folder in folders]
    with_parent: list[str] = []
    for path, name in zip(paths, names, strict=True):
        with_parent.append(f"{path.parent.name}/{name}")
    full_paths = [str(path) for path in paths]
    for longer in (with_parent, full_paths):
        counts = Counter(names)
        for i, name in enumerate(names):
            if counts[name] > 1:
                names[i] = longer[i]
    return names


def _check_base(base: Checkpoint, folder: PeftFolder) -> None:
    if folder.base and last_part(folder.base) not in base.names:
        raise CheckpointError(
            f"`{folder.folder}` was trained on `{folder.base}`, but the given base is "
            f"`{base.source}`. If these are the same model, use `--any-base`."
        )


def _fit(base: Checkpoint, folder: PeftFolder, name: str, skeleton: Skeleton) -> Fitted:
    """Find the weights of the base model that a single adapter changes."""
    names = layer_names.match(folder.factors, base, folder.folder, skeleton)
    spelled = {_tensor(base, names, key): key for key in folder.saved}
    saved: dict[str, Callable[[], Tensor]] = {}
    for tensor, key in spelled.items():
        saved[tensor] = functools.partial(folder.saved.__getitem__, key)
    grown = _grown(base, folder, names, skeleton)

    pairs = experts.fit(folder, skeleton)
    for layer, factors in folder.factors.items():
        tensor = names.tensor(layer)
        assert tensor is not None  # `match` has found a weight for every layer, or raised
        stem = tensor.removesuffix(".weight")
        if stem in pairs:
            raise CheckpointError(
                f"`{folder.folder}`: two of its layers match the same weight of the base, "
                f"`{tensor}`."
            )
        _check_float(base, tensor, skeleton)
        if tensor in grown:
            shape = tuple(grown[tensor].shape)
        else:
            shape = _stored(base, tensor, skeleton).shape
        transposed = _is_transposed(folder, layer, tensor, shape, skeleton)
        pairs[stem] = factors, Weight(tensor, transposed)

    for factors, weight in pairs.values():
        _check_float(base, weight.tensor, skeleton)
        # Read the values once, so that damaged ones raise an error now, and not in the
        # middle of writing. Their shapes have been compared with the base model's before.
        _ = factors.change
    return Fitted(
        name=name,
        folder=folder,
        names=names,
        factors={stem: factors for stem, (factors, _) in pairs.items()},
        weights={stem: weight for stem, (_, weight) in pairs.items()},
        saved=OnDemand(saved),
        spelled=spelled,
        grown=grown,
        notes=coverage.notes(folder, name, names, skeleton),
    )


def _stored(base: Checkpoint, tensor: str, skeleton: Skeleton) -> Stored:
    """Return the dtype and shape of a weight in the base model.

    If the weight is not stored because it is tied, return those of the weight it is tied to.
    """
    if tensor not in base.where:
        tensor = skeleton.ties[tensor]
    return base.stored(tensor)


def _check_float(base: Checkpoint, tensor: str, skeleton: Skeleton) -> None:
    dtype = _stored(base, tensor, skeleton).dtype
    if dtype not in FLOATS:
        raise CheckpointError(
            f"`{tensor}` in `{base.folder}` has the type {dtype}: the base is quantized. "
            "Use the model from before quantization."
        )


def _is_transposed(
    folder: PeftFolder, layer: str, tensor: str, stored: tuple[int, ...], skeleton: Skeleton
) -> bool:
    """Return True if W is stored as in × out.

    As in peft, this depends on the class of the layer, regardless of `fan_in_fan_out`.
    """
    factors = folder.factors[layer]
    height, width = factors.shape
    # A convolution's kernel is flattened, as in `Factors.shape`.
    flat = (*stored[:1], math.prod(stored[1:]))
    fits = len(stored) >= 2 and flat == (height, width)
    fits_transposed = len(stored) == 2 and flat == (width, height)
    transposed = False
    if fits_transposed and not factors.embedding:
        transposed = _is_conv1d(folder, layer, tensor, fits, skeleton)
    if not transposed and not fits:
        raise CheckpointError(
            f"`{folder.folder}` changes `{layer}` by a matrix of shape {factors.shape}, "
            f"but `{tensor}` in `{skeleton.base.folder}` has the shape {stored}: "
            "the adapter belongs to another model."
        )
    return transposed


def _is_conv1d(folder: PeftFolder, layer: str, tensor: str, fits: bool, skeleton: Skeleton) -> bool:
    """Return True if a weight whose shape fits when transposed belongs to a `Conv1D`.

    Parameters
    ----------
    fits
        True if the shape also fits without being transposed, because the weight is square.
    """
    has_known_name = layer.split(".")[-1] in CONV1D_LAYERS
    if has_known_name and skeleton.base.config.get("model_type") in CONV1D:
        return True  # without asking transformers, which takes seconds
    stated = bool(folder.config.get("fan_in_fan_out"))
    if fits and not stated and not skeleton.may_have_conv1d():
        return False
    known = skeleton.is_conv1d(tensor)
    if known is not None:
        return known
    # transformers does not know the architecture, so use the configuration and the layer's name.
    return stated and has_known_name


def _tensor(base: Checkpoint, names: LayerNames, key: str) -> str:
    """Return the name that a full tensor in an adapter has in the base model.

    If the base model has no such tensor, return `key`, the name in the adapter.
    """
    module, _, parameter = key.rpartition(".")
    weight = names.tensor(module)
    if weight:
        name = f"{weight.removesuffix('.weight')}.{parameter}"
    else:
        name = names.stored + key.removeprefix(names.used)
    return name if name in base.where else key


def _grown(
    base: Checkpoint, folder: PeftFolder, names: LayerNames, skeleton: Skeleton
) -> dict[str, Tensor]:
    """Return the token tables that were resized before training.

    Raise if any other full tensor differs from the base model, unless it is in `modules_to_save`.
    """
    grown: dict[str, Tensor] = {}
    for key, value in folder.copies.items():
        tensor = _tensor(base, names, key)
        source = tensor if tensor in base.where else skeleton.ties.get(tensor)
        if source and _has_other_rows(base, source, value):
            is_table = tensor in skeleton.tables or tensor in skeleton.ties
            if is_table:
                grown[tensor] = value
                continue
        is_tied = bool(source) and source != tensor
        if is_tied and folder.config.get("ensure_weight_tying"):
            continue  # peft also writes the trained table under its other name
        if source is None or not _is_copy(base, source, value):
            raise CheckpointError(
                f"`{folder.folder}` has a full tensor `{tensor}`, which is neither a copy from "
                f"`{base.folder}` nor in `modules_to_save`: it belongs to another model, or was "
                "trained without being declared. It cannot be merged."
            )
    return grown


def _has_other_rows(base: Checkpoint, tensor: str, value: Tensor) -> bool:
    """Return True if a table differs from that of the base model only in the number of rows."""
    stored = base.stored(tensor).shape
    shape = tuple(value.shape)
    has_other_rows = stored[:1] != shape[:1]
    has_same_columns = stored[1:] == shape[1:]
    return has_other_rows and has_same_columns


def _is_copy(base: Checkpoint, tensor: str, value: Tensor) -> bool:
    """Return True if `value` equals the tensor of the given name in the base model."""
    stored = base.stored(tensor)
    if not value.ndim or stored.shape != tuple(value.shape):
        return False
    file = base.files[base.where[tensor]]
    # Compare a few rows at a time. An embedding table may be a large part of the model,
    # and should not be in memory twice.
    step = max(1, BLOCK // max(1, stored.row))
    first = 0
    for block in value.split(step):
        last = first + len(block)
        rows = file.read(tensor, first, last)
        if not torch.equal(rows.to(value), block):
            return False
        first = last
    return True


def choose_saved(adapters: Sequence[Fitted], choice: str | None = None) -> dict[str, Tensor]:
    """Choose the fully trained tensors to use in the merged model.

    The merged model can have only one tensor of each name.

    Parameters
    ----------
    choice
        The adapter whose tensors to use, or `none` to use those of the base model. By
        default, use the tensors of all adapters, which must not differ.

    Raises
    ------
    InputError
        Adapters have different values for a tensor, and no choice is given.
    """
    if choice == "none":
        return {}
    if choice is not None:
        by_name = {adapter.name: adapter for adapter in adapters}
        if choice not in by_name:
            raise UnknownName("adapter (for `--saved-modules`; or `none`)", choice, by_name)
        return dict(by_name[choice].saved)
    refusal = "The adapters have different `{}` (`modules_to_save`), but a model can have only one."
    saved = {adapter.name: adapter.saved for adapter in adapters}
    return agreed(saved, refusal)


def agreed(
    by_adapter: Mapping[str, Mapping[str, Tensor]], refusal: str, choice: str | None = None
) -> dict[str, Tensor]:
    """Combine the tensors of all adapters into one mapping; raise if they conflict.

    Parameters
    ----------
    refusal
        The beginning of the error message for a conflict, in which `{}` stands for the
        tensor's name.
    choice
        The name of the only adapter whose tensors to use. By default, use those of all adapters.

    Raises
    ------
    InputError
        Two adapters have different values for a tensor.
    """
    chosen: dict[str, Tensor] = {}
    for name, tensors in by_adapter.items():
        if choice is not None and name != choice:
            continue
        for tensor, value in tensors.items():
            if tensor in chosen and not torch.equal(chosen[tensor].to(value), value):
                names = ", ".join(by_adapter)
                raise InputError(
                    f"{refusal.format(tensor)} Choose with `--saved-modules`: {names}, "
                    "or `none` for the base's."
                )
            chosen[tensor] = value
    return chosen


def inputs(adapters: Sequence[Fitted], rule: str) -> dict[str, dict[str, Tensor]]:
    """Read the input statistics that were saved with the adapters, by adapter and layer.

    Raises
    ------
    CheckpointError
        The statistics of an adapter or one of its layers are missing or invalid.
    """
    by_adapter: dict[str, dict[str, Tensor]] = {}
    for adapter in adapters:
        folder = adapter.folder.folder
        path = folder / STATISTICS
        if not path.is_file():
            # In a run of perdure, the file is next to the PEFT folder.
            path = folder.resolve().parent / STATISTICS
        if not path.is_file():
            raise CheckpointError(
                f"The rule `{rule}` needs statistics of the layers' inputs, but there is no "
                f"`{STATISTICS}` in or next to `{folder}`. Runs of perdure can write it; "
                "for other adapters, choose another rule."
            )
        by_adapter[adapter.name] = _statistics(adapter, TensorFile(path))
    return by_adapter


def _statistics(adapter: Fitted, file: TensorFile) -> dict[str, Tensor]:
    """Read the input statistics of one adapter, by layer name in the base model."""
    statistics: dict[str, Tensor] = {}
    for key in file.tensors:
        value = file.read(key)
        # Layers with the same inputs, such as query, key and value, share one matrix.
        for layer in key.split(","):
            tensor = adapter.names.tensor(layer)
            if tensor:
                statistics[tensor.removesuffix(".weight")] = value
    # The statistics of a layer with an out × in weight are an in × in matrix.
    for layer, (_, width) in adapter.shapes.items():
        shape = (width, width)
        value = statistics.get(layer)
        if value is None:
            problem = "nothing"
        elif tuple(value.shape) != shape or not torch.isfinite(value).all():
            problem = f"a matrix of shape {tuple(value.shape)}, or one that is not finite"
        else:
            continue
        raise CheckpointError(
            f"`{file.path}` must have a finite matrix of shape {shape} for `{layer}`, but "
            f"has {problem}."
        )
    return statistics
