"""Adapters fitted to a base model on disk: whose layer is which weight, and what goes beyond B A, decided for all."""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from perdure import layer_names, peft_folder
from perdure.checkpoint import Checkpoint, last_part
from perdure.errors import CheckpointError, InputError, UnknownName
from perdure.layer_names import LayerNames
from perdure.peft_folder import Factors, PeftFolder
from perdure.task_vector import OnDemand, TaskVector
from perdure.tensor_file import FLOATS, TensorFile

CONV1D = {"gpt2", "openai-gpt", "imagegpt", "decision_transformer"}  # models whose linear layers store W transposed
CONV1D_LAYERS = {"c_attn", "c_proj", "c_fc", "q_attn"}
LANGUAGE_MODELS = ("ForCausalLM", "LMHeadModel", "LMHead", "ForMaskedLM", "ForConditionalGeneration", "ForPreTraining")
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
    transposed
        The layers whose weight the base stores transposed.
    saved
        Modules that were trained whole, by the tensor's name in the base (or their own if it has none).
    spelled
        What the adapter itself calls those tensors.
    """

    name: str
    folder: PeftFolder
    names: LayerNames
    factors: Mapping[str, Factors]
    transposed: frozenset[str]
    saved: Mapping[str, Tensor]
    spelled: Mapping[str, str]

    @property
    def vector(self) -> TaskVector:
        """The task vector, whose factors stay on the disk until they are wanted."""
        return TaskVector(OnDemand({name: lambda one=one: one.change for name, one in self.factors.items()}))

    @property
    def shapes(self) -> dict[str, tuple[int, int]]:
        """The shape of each layer's change."""
        return {layer: factors.shape for layer, factors in self.factors.items()}


def fit(base: Checkpoint, sources: Sequence[str | Path], *, any_base: bool = False) -> list[Fitted]:
    """Read adapters, and find the weights of the base that they change.

    Raises
    ------
    InputError
        There are no adapters, or one is given twice.
    CheckpointError
        One is damaged, acts in another way than B A, or belongs to another model.
    """
    if not sources:
        raise InputError("There is nothing to merge: give at least one PEFT folder after the base model.")
    folders = [peft_folder.read(source) for source in sources]
    places = [folder.folder.resolve() for folder in folders]
    twice = next((place for i, place in enumerate(places) if place in places[:i]), None)
    if twice:
        raise InputError(f"The adapter `{twice}` is given twice.")
    if not any_base:
        for folder in folders:
            _check_base(base, folder)
    return [_fit(base, folder, name) for folder, name in zip(folders, _names(folders), strict=True)]


def _names(folders: Sequence[PeftFolder]) -> list[str]:
    """Each adapter's name, with the folders above where several have the same."""
    names = [folder.name for folder in folders]
    paths = [str(folder.folder.resolve()) for folder in folders]
    ends = [f"{Path(path).parent.name}/{name}" for path, name in zip(paths, names, strict=True)]
    for longer in (ends, paths):
        names = [name if names.count(name) == 1 else other for name, other in zip(names, longer, strict=True)]
    return names


def _check_base(base: Checkpoint, folder: PeftFolder) -> None:
    if folder.base and last_part(folder.base) not in base.names:
        raise CheckpointError(
            f"`{folder.folder}` was trained on `{folder.base}`, and the base given is `{base.source}`. If these "
            "are the same model, say so with `--any-base`."
        )


def _fit(base: Checkpoint, folder: PeftFolder, name: str) -> Fitted:
    names = layer_names.match(folder.factors, base, folder.folder)
    entries, transposed = {}, set()
    for layer, factors in folder.factors.items():
        tensor = names.tensor(layer)
        assert tensor is not None
        stem = tensor.removesuffix(".weight")
        if stem in entries:
            raise CheckpointError(f"`{folder.folder}`: two of its layers are the one weight `{tensor}` of the base.")
        entries[stem] = factors
        if _is_transposed(base, folder, layer, tensor):
            transposed.add(stem)
        _check_not_tied(base, folder, tensor)
    spelled = {_tensor(base, names, key): key for key in folder.saved}
    saved = OnDemand({tensor: functools.partial(folder.saved.__getitem__, key) for tensor, key in spelled.items()})
    for tensor in saved:
        _check_not_tied(base, folder, tensor)
    for key, value in folder.copies.items():
        _check_copy(base, folder, _tensor(base, names, key), value)
    return Fitted(name, folder, names, entries, frozenset(transposed), saved, spelled)


def _is_transposed(base: Checkpoint, folder: PeftFolder, layer: str, tensor: str) -> bool:
    """Whether W is stored as in × out. Shapes say it, or for a square matrix the kind of the model."""
    stored, factors = base.stored(tensor), folder.factors[layer]
    shape, found = factors.shape, (*stored.shape[:1], stored.row)
    if stored.dtype not in FLOATS:
        raise CheckpointError(
            f"`{tensor}` in `{base.folder}` has the type {stored.dtype}: the base is quantized. Give the model before "
            "quantization."
        )
    conv1d = str(base.config.get("model_type")) in CONV1D and layer.split(".")[-1] in CONV1D_LAYERS
    may = not factors.embedding and len(stored.shape) == 2 and (conv1d or bool(folder.config.get("fan_in_fan_out")))
    if len(stored.shape) < 2 or (shape != found and not (may and shape[::-1] == found)):
        raise CheckpointError(
            f"`{folder.folder}` changes `{layer}` by a matrix of the shape {shape}, but `{tensor}` in `{base.folder}` "
            f"has the shape {stored.shape}: the adapter belongs to another model."
        )
    return may and shape[::-1] == found


def _check_not_tied(base: Checkpoint, folder: PeftFolder, tensor: str) -> None:
    """The table of the input's embeddings is the output's too in many language models: a change would act twice."""
    nested, named = base.config.get("text_config"), base.config.get("architectures")
    config = {**(nested if isinstance(nested, dict) else {}), **base.config}
    architecture = str(named[0]) if isinstance(named, list) and named else ""
    in_a_block = any(part.isdigit() for part in tensor.split("."))
    if tensor not in base.where or in_a_block or not architecture.endswith(LANGUAGE_MODELS):
        return
    shape = base.stored(tensor).shape
    if len(shape) != 2 or shape[0] != config.get("vocab_size"):
        return
    stated = config.get("tie_word_embeddings")
    alone = not any(base.stored(other).shape == shape for other in base.where if other != tensor)
    if stated or (stated is None and alone):
        raise CheckpointError(
            f"`{folder.folder}` changes `{tensor}`, which `{base.folder}` uses both for its input and for its output "
            "(`tie_word_embeddings`). The adapter changed one of them: a merged model could not hold both."
        )


def _tensor(base: Checkpoint, names: LayerNames, key: str) -> str:
    """The name in the base of a tensor that an adapter holds whole; its own if the base has none."""
    module, _, part = key.rpartition(".")
    weight = names.tensor(module)
    found = f"{weight.removesuffix('.weight')}.{part}" if weight else names.stored + key.removeprefix(names.used)
    return found if found in base.where else key


def _check_copy(base: Checkpoint, folder: PeftFolder, tensor: str, value: Tensor) -> None:
    """A whole tensor that was not declared as trained must be the base's own."""
    same = tensor in base.where and value.ndim > 0 and base.stored(tensor).shape == tuple(value.shape)
    if same:
        file, step = base.files[base.where[tensor]], max(1, BLOCK // max(1, value[0].numel()))
        parts = ((file.read(tensor, i, min(i + step, len(value))), i) for i in range(0, len(value), step))
        same = all(torch.equal(part.to(value), value[i : i + step]) for part, i in parts)
    if not same:
        raise CheckpointError(
            f"`{folder.folder}` holds `{tensor}` whole, not as in `{base.folder}` and not among its `modules_to_save`: "
            "the vocabulary was changed, or it belongs to another model. It cannot be merged."
        )


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
    found: dict[str, Tensor] = {}
    for adapter in adapters:
        for tensor, value in adapter.saved.items():
            if tensor in found and not torch.equal(found[tensor].to(value), value):
                names = ", ".join(adapter.name for adapter in adapters)
                raise InputError(
                    f"The adapters have different `{tensor}` (`modules_to_save`), and one model can hold one. Choose "
                    f"with `--saved-modules`: {names}, or `none` for the base's."
                )
            found[tensor] = value
    return found


def inputs(adapters: Sequence[Fitted], rule: str) -> dict[str, dict[str, Tensor]]:
    """The kept statistics of each layer's inputs, by adapter and layer.

    Raises
    ------
    CheckpointError
        An adapter has none, or none for one of its layers.
    """
    found = {}
    for adapter in adapters:
        places = [adapter.folder.folder / STATISTICS, adapter.folder.folder.resolve().parent / STATISTICS]
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
            has = "nothing" if value is None else f"a matrix of the shape {tuple(value.shape)}, or one not finite"
            raise CheckpointError(f"`{path}` must have a finite matrix {wanted} for `{layer}`; it has {has}.")
    return found
