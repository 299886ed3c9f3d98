"""Functions that write the result of a merge, as a complete model folder or as an adapter."""

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from perdure.checkpoints import auto_class, card, export, fold
from perdure.checkpoints.base import INDEX, inside
from perdure.checkpoints.card import Merged
from perdure.checkpoints.fit import Fitted
from perdure.checkpoints.merger import HEADS, Merger
from perdure.errors import CheckpointError, InputError
from perdure.storage import staging
from perdure.storage.files import read_json
from perdure.storage.tensors import TensorFile, total_bytes
from perdure.vectors.task_vector import LowRank

CODE = ("auto_map", "custom_pipelines")  # settings that refer to code
TOKENIZER = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "vocab.txt",
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
    "chat_template.jinja",
)
Progress = Callable[[int], None]


def write_model(merger: Merger, summary: Merged, progress: Progress) -> Merged:
    """Write the merged model with its tokenizer and other files; see `merge_checkpoint`."""
    base = merger.base
    with staging.new_folder(summary.output, size=summary.size) as folder:
        for name, path in _companions(merger).items():
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            # Do not copy the file's mode, because the umask should decide who may read the copy.
            shutil.copyfile(path, target)
        for name, file in base.files.items():
            fold.fold(
                file,
                folder / name,
                merger.changes(name),
                merger.replaced(name),
                progress,
                copies=merger.copies(name),
            )
        if base.index is not None:
            _write_index(base.index, list(base.files), folder)
        _write_configurations(merger, folder)
        # The card of the base model was not copied, because it describes a different model.
        (folder / "README.md").write_text(card.card(summary), encoding="utf-8")
    return replace(summary, written=True)


def size_of(merger: Merger) -> int:
    """Return the size in bytes of the model that `write_model` would write."""
    size = 0
    for name, file in merger.base.files.items():
        size += fold.size_of(
            file,
            merger.replaced(name),
            merger.copies(name),
        )
    for path in _companions(merger).values():
        size += path.stat().st_size
    return size


def _companions(merger: Merger) -> dict[Path, Path]:
    """Return the files to copy in addition to the weights, by path in the new folder.

    If the vocabulary comes from an adapter with a tokenizer, that tokenizer is used.
    """
    base = merger.base
    files: dict[Path, Path] = {}
    tokenizer = _adapter_tokenizer(merger)
    for name in base.companions():
        # Never mix files of two tokenizers, because they would be inconsistent.
        if not tokenizer or str(name) not in TOKENIZER:
            files[name] = inside(base.folder, str(name))
    for path in tokenizer:
        files[Path(path.name)] = path
    return files


def _adapter_tokenizer(merger: Merger) -> list[Path]:
    """Return the tokenizer files of the adapter whose vocabulary is used, if there are any."""
    owner = merger.tables.owner
    if owner is None:
        return []
    folder = owner.folder.folder
    if not (folder / "tokenizer_config.json").is_file():
        return []
    return [inside(folder, name) for name in TOKENIZER if (folder / name).is_file()]


def notes(merger: Merger, form: str) -> tuple[str, ...]:
    """Return warnings about a merge, in full sentences, for the user and the model card."""
    messages: list[str] = []
    for adapter in merger.adapters:
        messages += adapter.notes
    tables = merger.tables
    if tables.untied and form == "model":
        messages.append(
            "The input and output embeddings, which share one table in the base, are now two "
            "tables (`tie_word_embeddings: false`)."
        )
    if tables.owner is not None:
        tokenizer = "this adapter has no tokenizer, so the base's is kept"
        if _adapter_tokenizer(merger):
            tokenizer = "its tokenizer is used"
        messages.append(
            f"The vocabulary has {tables.size} tokens, like that of the adapter "
            f"`{tables.owner.name}`; {tokenizer}."
        )
    code = merger.base.code()
    if code and form == "model":
        messages.append(
            f"The base's code ({', '.join(code)}) was not copied, and no configuration refers to "
            "it. If the model needs the code, review it, and copy it and the configurations' "
            "`auto_map` from the base."
        )
    return tuple(messages)


def loads_with(merger: Merger, form: str) -> str:
    """Return the transformers class that loads the merged model, or the adapter's base model."""
    classes: set[str | None] = set()
    for adapter in merger.adapters:
        classes.add(auto_class.of_task(adapter.folder.config.get("task_type")))
    adapter_class = classes.pop() if len(classes) == 1 else None
    # Use the base model's configuration, unless the adapters contain a different head.
    # The copy of a tied table is also new, but is not a head.
    known = {*merger.base.where, *merger.tables.copies}
    has_new_head = not known.issuperset(merger.saved)
    if adapter_class and (form == "adapter" or has_new_head):
        return adapter_class
    return auto_class.of_config(merger.base.config)


def _write_index(old: Mapping[str, object], names: Sequence[str], folder: Path) -> None:
    """Write the index of the weight files, using the headers of the new files."""
    # Tensors may be new or have different sizes, so the base model's index no longer applies.
    table: dict[str, str] = {}
    size = 0
    for name in names:
        tensors = TensorFile(folder / name).tensors
        size += total_bytes(tensors.values())
        for tensor in tensors:
            table[tensor] = name
    metadata = old.get("metadata")
    index = {
        "metadata": (metadata if isinstance(metadata, dict) else {}) | {"total_size": size},
        "weight_map": table,
    }
    (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _write_configurations(merger: Merger, folder: Path) -> None:
    """Update settings that the merge affects, and remove references to code, in all JSON files."""
    for path in sorted(folder.glob("*.json")):
        name = path.name
        # These files are not configurations, and large ones take seconds to read.
        if name in ("tokenizer.json", "vocab.json") or name.endswith(".index.json"):
            continue
        is_model = name == "config.json"
        old = merger.base.config if is_model else _object(path)
        new = {key: value for key, value in old.items() if key not in CODE}
        if is_model:
            new.update(_labels(merger))
            new.update(_tables(merger))
        # Do not rewrite unchanged configurations, so that they are copied byte for byte.
        if new != old:
            text = json.dumps(new, indent=2, sort_keys=True)
            path.write_text(text + "\n", encoding="utf-8")


def _object(path: Path) -> Mapping[str, object]:
    """Return the JSON object in a file, or an empty dict if the file has another JSON type.

    An example is the list of modules of sentence-transformers.
    """
    try:
        return read_json(path)
    except CheckpointError:
        return {}


def _labels(merger: Merger) -> dict[str, object]:
    """Return new label settings if a head with a different number of labels is used."""
    head: Tensor | None = None
    for tensor, value in merger.saved.items():
        if tensor.endswith(HEADS) and value.ndim == 2:
            head = value
    if head is None:
        return {}
    old = merger.base.config.get("id2label")
    # transformers does not save the labels if there are two of them, which is the default.
    count = len(old) if isinstance(old, dict) else 2
    if len(head) == count:
        return {}
    labels = {str(i): f"LABEL_{i}" for i in range(len(head))}
    return {
        "id2label": labels,
        "label2id": {label: int(i) for i, label in labels.items()},
    }


def _tables(merger: Merger) -> dict[str, object]:
    """Return the configuration settings that must change because the token tables changed.

    If there is a nested `text_config`, it is updated as well.
    """
    # Without these, transformers would tie the tables again, or reject their shape.
    stated: dict[str, object] = {}
    if merger.tables.untied:
        stated["tie_word_embeddings"] = False
    if merger.tables.size is not None:
        stated["vocab_size"] = merger.tables.size
    changed = dict(stated)
    nested = merger.base.config.get("text_config")
    if stated and isinstance(nested, dict):
        changed["text_config"] = nested | stated
        # Only some models also have the size in the outer configuration.
        if "vocab_size" not in merger.base.config:
            changed.pop("vocab_size", None)
    return changed


def write_adapter(merger: Merger, summary: Merged, rank: int | None, progress: Progress) -> Merged:
    """Write the merged change as a single LoRA adapter; see `merge_checkpoint`."""
    # Compute everything before writing, because the card reports the truncation error.
    _check_adapter(merger)
    embeddings = _embeddings(merger.adapters)
    layers: dict[export.Layer, LowRank] = {}
    # The squared Frobenius norms of all truncated parts, and of all changes.
    dropped = 0.0
    total = 0.0
    for name, entry in merger.vector.items():
        change, layer_dropped, layer_total = export.truncated(entry, rank)
        dropped += layer_dropped
        total += layer_total
        tensor = merger.weights[name].tensor
        layer = export.Layer(
            name=_adapter_layer(merger, tensor),
            shape=merger.stored(tensor).shape,
            embedding=name in embeddings,
        )
        layers[layer] = change
        progress(1)
    if not layers:
        raise InputError(
            f"The rule `{merger.rule}` changes no layers, so there is no adapter to write."
        )

    tensors = export.tensors(layers)
    saved_modules: set[str] = set()
    for tensor, value in merger.saved.items():
        name = _adapter_tensor(merger.adapters, tensor)
        saved_modules.add(name.rpartition(".")[0])
        tensors[f"{export.PREFIX}{name}"] = value
    configuration = export.config(layers, _adapter_settings(merger, saved_modules))

    size = sum(value.numel() * value.element_size() for value in tensors.values())
    error = (dropped / total) ** 0.5 if total else 0.0
    summary = replace(summary, error=error, size=size)
    with staging.new_folder(summary.output, size=size) as folder:
        export.write(folder, configuration, tensors)
        (folder / "README.md").write_text(card.card(summary), encoding="utf-8")
    return replace(summary, written=True)


def _adapter_settings(merger: Merger, saved_modules: set[str]) -> dict[str, object]:
    """Return those settings of the merged adapter that cannot be derived from its factors."""
    # All adapters have the same base model. Use the name that the first adapter has for it.
    first = merger.adapters[0].folder
    tasks = {adapter.folder.config.get("task_type") for adapter in merger.adapters}
    weights = merger.weights.values()
    return {
        "base_model_name_or_path": first.base or merger.base.published,
        "fan_in_fan_out": any(weight.transposed for weight in weights),
        "modules_to_save": sorted(saved_modules) or None,
        "task_type": tasks.pop() if len(tasks) == 1 else None,
    }


def _check_adapter(merger: Merger) -> None:
    """Raise if the result of a merge cannot be written as an adapter for the base model."""
    if merger.tables.size is not None:
        raise InputError(
            "The vocabulary size differs from the base's, so an adapter would not fit the base. "
            "Write a full model instead (`--as model`)."
        )
    if any(adapter.folder.wrapped for adapter in merger.adapters):
        raise InputError(
            "The adapters change individual parameters (`target_parameters`), such as experts. "
            "These can only be written as part of a full model (`--as model`)."
        )


def _adapter_layer(merger: Merger, tensor: str) -> str:
    """Return the layer name that the first matching adapter uses for a weight."""
    names = [adapter.names for adapter in merger.adapters]
    known = [each for each in names if tensor in each.tensors.values()]
    return known[0].layer(tensor)


def _adapter_tensor(adapters: Sequence[Fitted], tensor: str) -> str:
    """Return the name of a fully trained tensor in the first adapter that contains it."""
    return next(adapter.spelled[tensor] for adapter in adapters if tensor in adapter.saved)


def _embeddings(adapters: Sequence[Fitted]) -> set[str]:
    """Return the embedding layers that adapters change, by their names in the base model."""
    embeddings: set[str] = set()
    for adapter in adapters:
        for layer, factors in adapter.folder.factors.items():
            if factors.embedding:
                tensor = str(adapter.names.tensor(layer))
                embeddings.add(tensor.removesuffix(".weight"))
    return embeddings
