"""Adapters fitted to a base model on disk: whose layer is which weight, and what goes beyond B A, decided for all."""

import functools
import math
from collections.abc import Mapping, Sequence
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
from perdure.vectors.task_vector import OnDemand, TaskVector

CONV1D_LAYERS = {"c_attn", "c_proj", "c_fc", "q_attn"}
STATISTICS = "inputs.safetensors"
BLOCK = 1 << 22  # values compared at a time


@dataclass(frozen=True)
class Fitted:
    """An adapter, and how its layers are called in the base.

    Attributes
    ----------
    name
        Its own among the adapters that are merged.
    factors
        By the layer's name in the base: its weight's without `.weight`.
    weights
        Where the weight of each of these layers lies.
    saved
        Modules that were trained whole, by the tensor's name in the base (or their own if it has none).
    spelled
        What the adapter itself calls those tensors.
    grown
        Tables with a row for each token that were resized before training, by the tensor's name in the base.
    notes
        What a user should know of it, a sentence each.
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
        """The task vector, whose factors stay on the disk until they are wanted."""
        return TaskVector(
            OnDemand({name: lambda one=one: one.change for name, one in self.factors.items()})
        )

    @property
    def shapes(self) -> dict[str, tuple[int, int]]:
        """The shape of each layer's change."""
        return {layer: factors.shape for layer, factors in self.factors.items()}

    @property
    def settings(self) -> str:
        """Its ranks and alphas."""
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
        One is damaged, acts in another way than B A, or belongs to another model.
    """
    if not sources:
        raise InputError(
            "There is nothing to merge: give at least one PEFT folder after the base model."
        )
    folders = [peft_folder.read(source) for source in sources]
    places = [folder.folder.resolve() for folder in folders]
    twice = next((place for i, place in enumerate(places) if place in places[:i]), None)
    if twice:
        raise InputError(f"The adapter `{twice}` is given twice.")
    if not any_base:
        for folder in folders:
            _check_base(base, folder)
    return [
        _fit(base, folder, name, skeleton)
        for folder, name in zip(folders, _names(folders), strict=True)
    ]


def _names(folders: Sequence[PeftFolder]) -> list[str]:
    """Each adapter's name, with the folders above where several have the same."""
    names = [folder.name for folder in folders]
    paths = [str(folder.folder.resolve()) for folder in folders]
    ends = [f"{Path(path).parent.name}/{name}" for path, name in zip(paths, names, strict=True)]
    for longer in (ends, paths):
        names = [
            name if names.count(name) == 1 else other
            for name, other in zip(names, longer, strict=True)
        ]
    return names


def _check_base(base: Checkpoint, folder: PeftFolder) -> None:
    if folder.base and last_part(folder.base) not in base.names:
        raise CheckpointError(
            f"`{folder.folder}` was trained on `{folder.base}`, and the base given is `{base.source}`. If these "
            "are the same model, say so with `--any-base`."
        )


def _fit(base: Checkpoint, folder: PeftFolder, name: str, skeleton: Skeleton) -> Fitted:
    names = layer_names.match(folder.factors, base, folder.folder, skeleton)
    spelled = {_tensor(base, names, key): key for key in folder.saved}
    saved = OnDemand(
        {
            tensor: functools.partial(folder.saved.__getitem__, key)
            for tensor, key in spelled.items()
        }
    )
    grown = _grown(base, folder, names, skeleton)
    pairs = experts.fit(folder, skeleton)
    for layer, factors in folder.factors.items():
        tensor = names.tensor(layer)
        assert tensor is not None
        stem = tensor.removesuffix(".weight")
        if stem in pairs:
            raise CheckpointError(
                f"`{folder.folder}`: two of its layers are the one weight `{tensor}` of the base."
            )
        _check_float(base, tensor, skeleton)
        stored = grown[tensor].shape if tensor in grown else _stored(base, tensor, skeleton).shape
        pairs[stem] = (
            factors,
            Weight(tensor, _is_transposed(folder, layer, tensor, tuple(stored), skeleton)),
        )
    for factors, weight in pairs.values():
        _check_float(base, weight.tensor, skeleton)
        _ = (
            factors.change
        )  # what is damaged shows now, but not before its size is known to be that of the base
    factors = {stem: pair[0] for stem, pair in pairs.items()}
    weights = {stem: pair[1] for stem, pair in pairs.items()}
    notes = coverage.notes(folder, name, names, skeleton)
    return Fitted(name, folder, names, factors, weights, saved, spelled, grown, notes)


def _stored(base: Checkpoint, tensor: str, skeleton: Skeleton) -> Stored:
    """Type, shape and place of a weight; of a tied one that is not stored, those of the other."""
    return base.stored(tensor if tensor in base.where else skeleton.ties[tensor])


def _check_float(base: Checkpoint, tensor: str, skeleton: Skeleton) -> None:
    stored = _stored(base, tensor, skeleton)
    if stored.dtype not in FLOATS:
        raise CheckpointError(
            f"`{tensor}` in `{base.folder}` has the type {stored.dtype}: the base is quantized. Give the model before "
            "quantization."
        )


def _is_transposed(
    folder: PeftFolder, layer: str, tensor: str, stored: tuple[int, ...], skeleton: Skeleton
) -> bool:
    """Whether W is stored as in × out: by the kind of the layer, whatever `fan_in_fan_out` says, as in peft."""
    factors, base = folder.factors[layer], skeleton.base
    flat = (*stored[:1], math.prod(stored[1:]))
    fits = len(stored) >= 2 and factors.shape == flat
    fits_turned = len(stored) == 2 and factors.shape[::-1] == flat and not factors.embedding
    stated = bool(folder.config.get("fan_in_fan_out"))
    transposed = False
    named = layer.split(".")[-1] in CONV1D_LAYERS
    if (
        fits_turned and named and base.config.get("model_type") in CONV1D
    ):  # without asking transformers
        transposed = True
    elif fits_turned and (not fits or stated or skeleton.may_have_conv1d()):
        known = skeleton.is_conv1d(tensor)
        # of an architecture that transformers does not know, the file and the names are all there is to go by
        transposed = known if known is not None else stated and named
    if not (fits_turned if transposed else fits):
        raise CheckpointError(
            f"`{folder.folder}` changes `{layer}` by a matrix of the shape {factors.shape}, but `{tensor}` in "
            f"`{base.folder}` has the shape {stored}: the adapter belongs to another model."
        )
    return transposed


def _tensor(base: Checkpoint, names: LayerNames, key: str) -> str:
    """The name in the base of a tensor that an adapter holds whole; its own if the base has none."""
    module, _, part = key.rpartition(".")
    weight = names.tensor(module)
    found = (
        f"{weight.removesuffix('.weight')}.{part}"
        if weight
        else names.stored + key.removeprefix(names.used)
    )
    return found if found in base.where else key


def _grown(
    base: Checkpoint, folder: PeftFolder, names: LayerNames, skeleton: Skeleton
) -> dict[str, Tensor]:
    """The tables that were resized before training. Other whole tensors that are not declared must be the base's."""
    grown: dict[str, Tensor] = {}
    for key, value in folder.copies.items():
        tensor = _tensor(base, names, key)
        source = tensor if tensor in base.where else skeleton.ties.get(tensor)
        if (
            source
            and _has_other_rows(base, source, value)
            and tensor in {*skeleton.tables, *skeleton.ties}
        ):
            grown[tensor] = value
        elif source != tensor and source and folder.config.get("ensure_weight_tying"):
            continue  # peft writes the table that was trained under its other name, too
        elif source is None or not _is_copy(base, source, value):
            raise CheckpointError(
                f"`{folder.folder}` holds `{tensor}` whole, not as in `{base.folder}` and not among its "
                "`modules_to_save`: it belongs to another model, or was trained without being declared. It cannot be "
                "merged."
            )
    return grown


def _has_other_rows(base: Checkpoint, tensor: str, value: Tensor) -> bool:
    stored = base.stored(tensor).shape
    return stored[:1] != tuple(value.shape[:1]) and stored[1:] == tuple(value.shape[1:])


def _is_copy(base: Checkpoint, tensor: str, value: Tensor) -> bool:
    """Whether a tensor is the base's own, compared a few rows at a time."""
    if not value.ndim or base.stored(tensor).shape != tuple(value.shape):
        return False
    file = base.files[base.where[tensor]]
    step = max(1, BLOCK // max(1, value[0].numel()))
    for first in range(0, len(value), step):
        rows = file.read(tensor, first, min(first + step, len(value)))
        if not torch.equal(rows.to(value), value[first : first + step]):
            return False
    return True


def choose_saved(adapters: Sequence[Fitted], choice: str | None = None) -> dict[str, Tensor]:
    """The modules that were trained whole, of which a merged model can have one each.

    Parameters
    ----------
    choice
        The adapter whose modules are taken; `none`: the base keeps its own; by default all, if none differ.

    Raises
    ------
    InputError
        Several adapters have different ones, and there was no choice.
    """
    if choice == "none":
        return {}
    if choice is not None:
        chosen = {adapter.name: adapter for adapter in adapters}
        if choice not in chosen:
            raise UnknownName("adapter (for `--saved-modules`; or `none`)", choice, chosen)
        return dict(chosen[choice].saved)
    refusal = "The adapters have different `{}` (`modules_to_save`), and one model can hold one."
    return agreed({adapter.name: adapter.saved for adapter in adapters}, refusal)


def agreed(
    by_adapter: Mapping[str, Mapping[str, Tensor]], refusal: str, choice: str | None = None
) -> dict[str, Tensor]:
    """Return the tensors of which a merged model can have one each, if no two adapters have different ones.

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
        if choice not in (None, name):
            continue
        for tensor, value in tensors.items():
            if tensor in chosen and not torch.equal(chosen[tensor].to(value), value):
                names = ", ".join(by_adapter)
                raise InputError(
                    f"{refusal.format(tensor)} Choose with `--saved-modules`: {names}, or `none` for the base's."
                )
            chosen[tensor] = value
    return chosen


def inputs(adapters: Sequence[Fitted], rule: str) -> dict[str, dict[str, Tensor]]:
    """The kept statistics of each layer's inputs, by adapter and layer.

    Raises
    ------
    CheckpointError
        An adapter has none, or none for one of its layers.
    """
    found = {}
    for adapter in adapters:
        places = [
            adapter.folder.folder / STATISTICS,
            adapter.folder.folder.resolve().parent / STATISTICS,
        ]
        path = next((place for place in places if place.is_file()), None)
        if path is None:
            raise CheckpointError(
                f"The rule `{rule}` needs the statistics of the layers' inputs, and there is no `{STATISTICS}` in or "
                f"beside `{adapter.folder.folder}`. A run of perdure writes it; for other adapters choose another rule."
            )
        found[adapter.name] = _statistics(adapter, TensorFile(path), path)
    return found


def _statistics(adapter: Fitted, file: TensorFile, path: Path) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for key in file.tensors:
        value = file.read(key)
        for layer in key.split(","):
            tensor = adapter.names.tensor(layer)
            if tensor:
                found[tensor.removesuffix(".weight")] = value
    for layer, shape in adapter.shapes.items():
        wanted = (shape[1],) * 2
        value = found.get(layer)
        if value is None or tuple(value.shape) != wanted or not torch.isfinite(value).all():
            has = (
                "nothing"
                if value is None
                else f"a matrix of the shape {tuple(value.shape)}, or one not finite"
            )
            raise CheckpointError(
                f"`{path}` must have a finite matrix {wanted} for `{layer}`; it has {has}."
            )
    return found
