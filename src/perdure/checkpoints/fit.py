"""Adapters fitted to a base model on disk.

Before a rule sees any adapter, this module decides which weights each one changes, and what happens
to its tensors other than A and B.
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

# The names that GPT-2 and its relatives give to layers of the kind `Conv1D`.
CONV1D_LAYERS = {"c_attn", "c_proj", "c_fc", "q_attn"}
# The file in which a run keeps the statistics of the layers' inputs.
STATISTICS = "inputs.safetensors"
BLOCK = 1 << 22  # values compared at a time


@dataclass(frozen=True)
class Fitted:
    """An adapter, with the names and weights of its layers in the base.

    Attributes
    ----------
    name
        A name that no other adapter of the merge has.
    factors
        The change of each layer, by the name of its weight in the base without `.weight`.
    weights
        The weight of each of these layers.
    saved
        Modules that were trained whole, by the tensor's name in the base (or their own, if the
        base has none).
    spelled
        The adapter's own names for those tensors.
    grown
        Tables with a row for each token that were resized before training, by the tensor's name
        in the base.
    notes
        Sentences with warnings for the user.
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
        """The task vector, whose factors stay on disk until they are needed."""
        makers: dict[str, Callable[[], LowRank]] = {}
        for name, factors in self.factors.items():
            makers[name] = functools.partial(getattr, factors, "change")
        return TaskVector(OnDemand(makers))

    @property
    def shapes(self) -> dict[str, tuple[int, int]]:
        """The shape of each layer's change."""
        return {layer: factors.shape for layer, factors in self.factors.items()}

    @property
    def settings(self) -> str:
        """The ranks and alphas, as text."""
        return peft_folder.described(self.factors.values())


def fit(
    base: Checkpoint, sources: Sequence[str | Path], skeleton: Skeleton, *, any_base: bool = False
) -> list[Fitted]:
    """Read adapters, and find the weights of the base that they change.

    Raises
    ------
    InputError
        There are no adapters, or one is given twice.
    CheckpointError
        An adapter is damaged, does anything other than adding B A, or belongs to another model.
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
    """Return a name for each adapter, with parent folders if several have the same name."""
    # `en/lora` and `de/lora` are told apart by the folder above, and if that is not enough
    # by their paths.
    names = [folder.name for folder in folders]
    paths = [folder.folder.resolve() for folder in folders]
    with_parent: list[str] = []
    for path, name in zip(paths, names, strict=True):
        with_parent.append(f"{path.parent.name}/{name}")
    whole_paths = [str(path) for path in paths]
    for longer in (with_parent, whole_paths):
        counts = Counter(names)
        for i, name in enumerate(names):
            if counts[name] > 1:
                names[i] = longer[i]
    return names


def _check_base(base: Checkpoint, folder: PeftFolder) -> None:
    if folder.base and last_part(folder.base) not in base.names:
        raise CheckpointError(
            f"`{folder.folder}` was trained on `{folder.base}`, and the base given is "
            f"`{base.source}`. If these are the same model, say so with `--any-base`."
        )


def _fit(base: Checkpoint, folder: PeftFolder, name: str, skeleton: Skeleton) -> Fitted:
    """Find the weights that one adapter changes."""
    names = layer_names.match(folder.factors, base, folder.folder, skeleton)
    spelled = {_tensor(base, names, key): key for key in folder.saved}
    saved: dict[str, Callable[[], Tensor]] = {}
    for tensor, key in spelled.items():
        saved[tensor] = functools.partial(folder.saved.__getitem__, key)
    grown = _grown(base, folder, names, skeleton)

    pairs = experts.fit(folder, skeleton)
    for layer, factors in folder.factors.items():
        tensor = names.tensor(layer)
        assert tensor is not None  # `match` finds a weight for every layer, or raises
        stem = tensor.removesuffix(".weight")
        if stem in pairs:
            raise CheckpointError(
                f"`{folder.folder}`: two of its layers are the one weight `{tensor}` of the base."
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
        # Damaged values show now and not in the middle of writing, but only once their size is
        # known to be that of the base.
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
    """Return the type and the shape of a weight.

    A tied weight that is not stored has the shape and type of the weight it is tied to.
    """
    if tensor not in base.where:
        tensor = skeleton.ties[tensor]
    return base.stored(tensor)


def _check_float(base: Checkpoint, tensor: str, skeleton: Skeleton) -> None:
    dtype = _stored(base, tensor, skeleton).dtype
    if dtype not in FLOATS:
        raise CheckpointError(
            f"`{tensor}` in `{base.folder}` has the type {dtype}: the base is quantized. "
            "Give the model before quantization."
        )


def _is_transposed(
    folder: PeftFolder, layer: str, tensor: str, stored: tuple[int, ...], skeleton: Skeleton
) -> bool:
    """Return whether W is stored as in × out.

    As in peft, the kind of the layer decides, whatever `fan_in_fan_out` says.
    """
    factors = folder.factors[layer]
    height, width = factors.shape
    # A convolution's kernel is flattened, as in `Factors.shape`.
    flat = (*stored[:1], math.prod(stored[1:]))
    fits = len(stored) >= 2 and flat == (height, width)
    fits_turned = len(stored) == 2 and flat == (width, height)
    transposed = False
    if fits_turned and not factors.embedding:
        transposed = _is_conv1d(folder, layer, tensor, fits, skeleton)
    if not transposed and not fits:
        raise CheckpointError(
            f"`{folder.folder}` changes `{layer}` by a matrix of the shape {factors.shape}, "
            f"but `{tensor}` in `{skeleton.base.folder}` has the shape {stored}: "
            "the adapter belongs to another model."
        )
    return transposed


def _is_conv1d(folder: PeftFolder, layer: str, tensor: str, fits: bool, skeleton: Skeleton) -> bool:
    """Return whether a weight that fits when transposed belongs to a `Conv1D`.

    Parameters
    ----------
    fits
        Whether the weight also fits as it is, because it is square.
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
    # transformers does not know the architecture: only the file and the names are left to go by.
    return stated and has_known_name


def _tensor(base: Checkpoint, names: LayerNames, key: str) -> str:
    """Return the name in the base of a tensor that an adapter holds whole.

    If the base has no such tensor, it is the adapter's own name.
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
    """Return the tables that were resized before training.

    Other whole tensors that are not declared must be equal to the base's.
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
            continue  # peft writes the table that was trained under its other name, too
        if source is None or not _is_copy(base, source, value):
            raise CheckpointError(
                f"`{folder.folder}` holds `{tensor}` whole, not as in `{base.folder}` and not "
                "among its `modules_to_save`: it belongs to another model, or was trained without "
                "being declared. It cannot be merged."
            )
    return grown


def _has_other_rows(base: Checkpoint, tensor: str, value: Tensor) -> bool:
    """Return whether a table differs only in its number of rows."""
    stored = base.stored(tensor).shape
    shape = tuple(value.shape)
    has_other_rows = stored[:1] != shape[:1]
    has_same_columns = stored[1:] == shape[1:]
    return has_other_rows and has_same_columns


def _is_copy(base: Checkpoint, tensor: str, value: Tensor) -> bool:
    """Return whether a tensor is equal to the base's."""
    stored = base.stored(tensor)
    if not value.ndim or stored.shape != tuple(value.shape):
        return False
    file = base.files[base.where[tensor]]
    # A few rows at a time: a table of embeddings may be a large part of the model, and only one
    # copy of it is in memory already.
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
    """Return the modules that were trained whole; a merged model can have one of each.

    Parameters
    ----------
    choice
        The adapter whose modules are taken; `none`: the base keeps its own; by default all of
        them, if none differ.

    Raises
    ------
    InputError
        Several adapters have different ones, and no choice is given.
    """
    if choice == "none":
        return {}
    if choice is not None:
        by_name = {adapter.name: adapter for adapter in adapters}
        if choice not in by_name:
            raise UnknownName("adapter (for `--saved-modules`; or `none`)", choice, by_name)
        return dict(by_name[choice].saved)
    refusal = "The adapters have different `{}` (`modules_to_save`), and one model can hold one."
    saved = {adapter.name: adapter.saved for adapter in adapters}
    return agreed(saved, refusal)


def agreed(
    by_adapter: Mapping[str, Mapping[str, Tensor]], refusal: str, choice: str | None = None
) -> dict[str, Tensor]:
    """Return the tensors of all adapters, if no two adapters have different ones.

    Parameters
    ----------
    refusal
        The sentence that says what differs, with `{}` for the tensor's name.
    choice
        The one adapter whose tensors are taken.

    Raises
    ------
    InputError
        Two adapters have different ones.
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
    """Return the kept statistics of each layer's inputs, by adapter and layer.

    Raises
    ------
    CheckpointError
        An adapter has none, or none for one of its layers.
    """
    by_adapter: dict[str, dict[str, Tensor]] = {}
    for adapter in adapters:
        folder = adapter.folder.folder
        path = folder / STATISTICS
        if not path.is_file():
            # In a run of perdure they lie beside the PEFT folder.
            path = folder.resolve().parent / STATISTICS
        if not path.is_file():
            raise CheckpointError(
                f"The rule `{rule}` needs the statistics of the layers' inputs, and there is no "
                f"`{STATISTICS}` in or beside `{folder}`. A run of perdure writes it; "
                "for other adapters choose another rule."
            )
        by_adapter[adapter.name] = _statistics(adapter, TensorFile(path))
    return by_adapter


def _statistics(adapter: Fitted, file: TensorFile) -> dict[str, Tensor]:
    """Return the statistics of one adapter, by the name of the layer in the base."""
    statistics: dict[str, Tensor] = {}
    for key in file.tensors:
        value = file.read(key)
        # Layers with the same inputs, such as query, key and value, share a matrix.
        for layer in key.split(","):
            tensor = adapter.names.tensor(layer)
            if tensor:
                statistics[tensor.removesuffix(".weight")] = value
    # A layer with weights of out × in has a matrix of in × in: the products of its inputs.
    for layer, (_, width) in adapter.shapes.items():
        shape = (width, width)
        value = statistics.get(layer)
        if value is None:
            problem = "nothing"
        elif tuple(value.shape) != shape or not torch.isfinite(value).all():
            problem = f"a matrix of the shape {tuple(value.shape)}, or one not finite"
        else:
            continue
        raise CheckpointError(
            f"`{file.path}` must have a finite matrix {shape} for `{layer}`; it has {problem}."
        )
    return statistics
