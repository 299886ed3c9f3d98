"""The files of a merge: the model with all its other files, or one adapter."""

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

CODE = ("auto_map", "custom_pipelines")  # settings that name code
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
    """Write the base with the merge's changes, and all its other files.

    See `merge_checkpoint`.
    """
    base = merger.base
    with staging.new_folder(summary.output, size=summary.size) as folder:
        for name, path in _beside(merger).items():
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            # Without the file's mode: the umask decides who may read it, not the base.
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
        # The card of the base was left behind: it describes another model.
        (folder / "README.md").write_text(card.card(summary), encoding="utf-8")
    return replace(summary, written=True)


def size_of(merger: Merger) -> int:
    """Return the bytes of the model that `write_model` will write."""
    size = 0
    for name, file in merger.base.files.items():
        size += fold.size_of(
            file,
            merger.replaced(name),
            merger.copies(name),
        )
    for path in _beside(merger).values():
        size += path.stat().st_size
    return size


def _beside(merger: Merger) -> dict[Path, Path]:
    """Return the other files of the model, by their name in its folder.

    The tokenizer is that of the adapter whose vocabulary is taken, if it has one.
    """
    base = merger.base
    files: dict[Path, Path] = {}
    tokenizer = _adapter_tokenizer(merger)
    for name in base.companions():
        # Not both: files of two tokenizers would contradict each other.
        if not tokenizer or str(name) not in TOKENIZER:
            files[name] = inside(base.folder, str(name))
    for path in tokenizer:
        files[Path(path.name)] = path
    return files


def _adapter_tokenizer(merger: Merger) -> list[Path]:
    """Return the tokenizer's files in the folder of the adapter whose vocabulary is taken."""
    owner = merger.tables.owner
    if owner is None:
        return []
    folder = owner.folder.folder
    if not (folder / "tokenizer_config.json").is_file():
        return []
    return [inside(folder, name) for name in TOKENIZER if (folder / name).is_file()]


def notes(merger: Merger, form: str) -> tuple[str, ...]:
    """Return the warnings of a merge, as sentences for the user and for the card."""
    sentences: list[str] = []
    for adapter in merger.adapters:
        sentences += adapter.notes
    tables = merger.tables
    if tables.untied and form == "model":
        sentences.append(
            "The embeddings of the input and of the output, one table in the base, are two now "
            "(`tie_word_embeddings: false`)."
        )
    if tables.owner is not None:
        tokenizer = "not beside it: the base's is kept"
        if _adapter_tokenizer(merger):
            tokenizer = "taken from it"
        sentences.append(
            f"The vocabulary has {tables.size} tokens, as the adapter `{tables.owner.name}` has; "
            f"its tokenizer is {tokenizer}."
        )
    code = merger.base.code()
    if code and form == "model":
        sentences.append(
            f"Code of the base is left behind ({', '.join(code)}), and no configuration names it. "
            "If the model needs it, read it, and copy it and the `auto_map` of the configurations "
            "from the base."
        )
    return tuple(sentences)


def loads_with(merger: Merger, form: str) -> str:
    """Return the class of transformers that loads the model, or the base for an adapter."""
    classes: set[str | None] = set()
    for adapter in merger.adapters:
        classes.add(auto_class.of_task(adapter.folder.config.get("task_type")))
    stated = classes.pop() if len(classes) == 1 else None
    # The base says what it is, unless a head of another kind was taken from the adapters. The
    # copy of a tied table is new, too, but no head.
    known = {*merger.base.where, *merger.tables.copies}
    has_new_head = not known.issuperset(merger.saved)
    if stated and (form == "adapter" or has_new_head):
        return stated
    return auto_class.of_config(merger.base.config)


def _write_index(old: Mapping[str, object], names: Sequence[str], folder: Path) -> None:
    """Write the index of the files, read anew from what was written."""
    # Tensors may be new or of another size: the table of the base no longer holds.
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
    """Update the configurations if the merge has changed what they state."""
    for path in sorted(folder.glob("*.json")):
        name = path.name
        # These are no configurations, and the large ones take seconds to read.
        if name in ("tokenizer.json", "vocab.json") or name.endswith(".index.json"):
            continue
        is_model = name == "config.json"
        old = merger.base.config if is_model else _object(path)
        new = {key: value for key, value in old.items() if key not in CODE}
        if is_model:
            new.update(_labels(merger))
            new.update(_tables(merger))
        # Unchanged configurations stay as they are, byte by byte.
        if new != old:
            text = json.dumps(new, indent=2, sort_keys=True)
            path.write_text(text + "\n", encoding="utf-8")


def _object(path: Path) -> Mapping[str, object]:
    """Return a JSON object; empty for a file with something else.

    The list of modules of sentence-transformers is such a file.
    """
    try:
        return read_json(path)
    except CheckpointError:
        return {}


def _labels(merger: Merger) -> dict[str, object]:
    """Return the labels if the merge took a head with a different number of them."""
    head: Tensor | None = None
    for tensor, value in merger.saved.items():
        if tensor.endswith(HEADS) and value.ndim == 2:
            head = value
    if head is None:
        return {}
    old = merger.base.config.get("id2label")
    # transformers writes no labels for two, its default.
    count = len(old) if isinstance(old, dict) else 2
    if len(head) == count:
        return {}
    labels = {str(i): f"LABEL_{i}" for i in range(len(head))}
    return {
        "id2label": labels,
        "label2id": {label: int(i) for i, label in labels.items()},
    }


def _tables(merger: Merger) -> dict[str, object]:
    """Return the settings that have changed with the tables of tokens.

    In a model with a text model inside, the configuration of that one states them, too.
    """
    # Without these transformers would tie the tables again, or refuse their shape.
    stated: dict[str, object] = {}
    if merger.tables.untied:
        stated["tie_word_embeddings"] = False
    if merger.tables.size is not None:
        stated["vocab_size"] = merger.tables.size
    changed = dict(stated)
    nested = merger.base.config.get("text_config")
    if stated and isinstance(nested, dict):
        changed["text_config"] = nested | stated
        # The outer configuration has a size of its own in some models only.
        if "vocab_size" not in merger.base.config:
            changed.pop("vocab_size", None)
    return changed


def write_adapter(merger: Merger, summary: Merged, rank: int | None, progress: Progress) -> Merged:
    """Write what the merge adds to the base as one LoRA; see `merge_checkpoint`."""
    # All is computed before anything is written: what the ranks leave out stands in the card.
    _check_adapter(merger)
    embeddings = _embeddings(merger.adapters)
    layers: dict[export.Layer, LowRank] = {}
    # Squares of Frobenius norms: of the parts that a rank leaves out, and of all changes.
    left_out = 0.0
    whole = 0.0
    for name, entry in merger.vector.items():
        change, layer_left_out, layer_whole = export.truncated(entry, rank)
        left_out += layer_left_out
        whole += layer_whole
        tensor = merger.weights[name].tensor
        layer = export.Layer(
            name=_called(merger, tensor),
            shape=merger.stored(tensor).shape,
            embedding=name in embeddings,
        )
        layers[layer] = change
        progress(1)
    if not layers:
        raise InputError(
            f"The rule `{merger.rule}` changes no layer: there is no adapter to write."
        )

    tensors = export.tensors(layers)
    saved_modules: set[str] = set()
    for tensor, value in merger.saved.items():
        name = _spelled(merger.adapters, tensor)
        saved_modules.add(name.rpartition(".")[0])
        tensors[f"{export.PREFIX}{name}"] = value
    configuration = export.config(layers, _stated(merger, saved_modules))

    size = sum(value.numel() * value.element_size() for value in tensors.values())
    error = (left_out / whole) ** 0.5 if whole else 0.0
    summary = replace(summary, error=error, size=size)
    with staging.new_folder(summary.output, size=size) as folder:
        export.write(folder, configuration, tensors)
        (folder / "README.md").write_text(card.card(summary), encoding="utf-8")
    return replace(summary, written=True)


def _stated(merger: Merger, saved_modules: set[str]) -> dict[str, object]:
    """Return the settings of the adapter that do not follow from its factors."""
    # All adapters have one base: the first one's name for it is taken.
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
    """Refuse a merge that an adapter of the base cannot hold."""
    if merger.tables.size is not None:
        raise InputError(
            "The vocabulary is another than the base's, so that an adapter would not fit the "
            "base. Write the whole model (`--as model`)."
        )
    if any(adapter.folder.wrapped for adapter in merger.adapters):
        raise InputError(
            "The adapters change single parameters (`target_parameters`), such as experts. "
            "These are written as part of the whole model only (`--as model`)."
        )


def _called(merger: Merger, tensor: str) -> str:
    """Return the name of a weight's layer in the first adapter that knows it."""
    names = [adapter.names for adapter in merger.adapters]
    known = [each for each in names if tensor in each.tensors.values()]
    return known[0].layer(tensor)


def _spelled(adapters: Sequence[Fitted], tensor: str) -> str:
    """Return the name of a tensor in the first adapter that has trained it whole."""
    return next(adapter.spelled[tensor] for adapter in adapters if tensor in adapter.saved)


def _embeddings(adapters: Sequence[Fitted]) -> set[str]:
    """Return the layers that are embeddings, by their names in the base."""
    embeddings: set[str] = set()
    for adapter in adapters:
        for layer, factors in adapter.folder.factors.items():
            if factors.embedding:
                tensor = str(adapter.names.tensor(layer))
                embeddings.add(tensor.removesuffix(".weight"))
    return embeddings
