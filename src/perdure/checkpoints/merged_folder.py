"""The files of a merger: the model with all that belongs to it, or one adapter."""

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

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
    *(
        "tokenizer.json",
        "tokenizer_config.json",
        "special_tokens_map.json",
        "added_tokens.json",
        "vocab.json",
    ),
    *(
        "merges.txt",
        "vocab.txt",
        "tokenizer.model",
        "spiece.model",
        "sentencepiece.bpe.model",
        "chat_template.jinja",
    ),
)
Progress = Callable[[int], None]


def write_model(merger: Merger, summary: Merged, progress: Progress) -> Merged:
    """Write the base with what the merger changes, and all that belongs to it; see `merge_checkpoint`."""
    base = merger.base
    with staging.new_folder(summary.output, size=summary.size) as folder:
        for name, path in _beside(merger).items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(
                path, folder / name
            )  # without its mode: who may read it is for the umask to say
        for name, file in base.files.items():
            copies = merger.copies(name)
            fold.fold(
                file,
                folder / name,
                merger.changes(name),
                merger.replaced(name),
                progress,
                copies=copies,
            )
        if base.index is not None:
            _write_index(merger, folder)
        _write_configurations(merger, folder)
        (folder / "README.md").write_text(card.card(summary), encoding="utf-8")
    return replace(summary, written=True)


def size_of(merger: Merger) -> int:
    """Return the bytes of the model that `write_model` will write."""
    files = merger.base.files.items()
    weights = sum(
        fold.size_of(file, merger.replaced(name), merger.copies(name)) for name, file in files
    )
    return weights + sum(path.stat().st_size for path in _beside(merger).values())


def _beside(merger: Merger) -> dict[Path, Path]:
    """The other files of the model: the base's, or the tokenizer of the adapter whose vocabulary is taken."""
    base = merger.base
    files = {name: inside(base.folder, str(name)) for name in base.companions()}
    tokenizer = _own_tokenizer(merger)
    if tokenizer:
        files = {name: path for name, path in files.items() if str(name) not in TOKENIZER}
        files |= {Path(path.name): path for path in tokenizer}
    return files


def _own_tokenizer(merger: Merger) -> list[Path]:
    """The tokenizer's files in the folder of the adapter whose vocabulary is taken."""
    owner = merger.tables.owner
    if owner is None or not (owner.folder.folder / "tokenizer_config.json").is_file():
        return []
    folder = owner.folder.folder
    return [inside(folder, name) for name in TOKENIZER if (folder / name).is_file()]


def notes(merger: Merger, form: str) -> tuple[str, ...]:
    """Return what a user should know of a merger, a sentence each."""
    said = [note for adapter in merger.adapters for note in adapter.notes]
    tables = merger.tables
    if tables.untied and form == "model":
        said.append(
            "The embeddings of the input and of the output, one table in the base, are two now "
            "(`tie_word_embeddings: false`)."
        )
    if tables.owner is not None:
        source = "taken from it" if _own_tokenizer(merger) else "not beside it: the base's is kept"
        said.append(
            f"The vocabulary has {tables.size} tokens, as the adapter `{tables.owner.name}` has; its tokenizer is "
            f"{source}."
        )
    code = merger.base.code()
    if code and form == "model":
        said.append(
            f"Code of the base is left behind ({', '.join(code)}), and no configuration names it. If the model needs "
            "it, read it, and copy it and the `auto_map` of the configurations from the base."
        )
    return tuple(said)


def loads_with(merger: Merger, form: str) -> str:
    """Return the class of transformers that loads the model, or with `adapter` the base for the adapter."""
    classes = {
        auto_class.of_task(adapter.folder.config.get("task_type")) for adapter in merger.adapters
    }
    stated = classes.pop() if len(classes) == 1 else None
    # the base says what it is, unless a head of another kind was taken from the adapters
    new_head = any(
        tensor not in merger.base.where and tensor not in merger.tables.copies
        for tensor in merger.saved
    )
    if stated and (form == "adapter" or new_head):
        return stated
    return auto_class.of_config(merger.base.config)


def _write_index(merger: Merger, folder: Path) -> None:
    assert merger.base.index is not None
    files = {name: TensorFile(folder / name) for name in merger.base.files}
    table = {tensor: name for name, file in files.items() for tensor in file.tensors}
    size = sum(total_bytes(file.tensors.values()) for file in files.values())
    about = merger.base.index.get("metadata")
    index = {
        "metadata": (about if isinstance(about, dict) else {}) | {"total_size": size},
        "weight_map": table,
    }
    (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _write_configurations(merger: Merger, folder: Path) -> None:
    """Bring the configurations up to date, where anything that they say has changed."""
    for path in sorted(folder.glob("*.json")):
        if path.name.endswith(".index.json") or path.name in ("tokenizer.json", "vocab.json"):
            continue
        config = merger.base.config if path.name == "config.json" else _object(path)
        changed = {key: value for key, value in config.items() if key not in CODE}
        if path.name == "config.json":
            changed |= _labels(merger) | _tables(merger)
        if changed != config:
            path.write_text(json.dumps(changed, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _object(path: Path) -> Mapping[str, Any]:
    """A JSON object; empty if it is something else, such as the list of modules of sentence-transformers."""
    try:
        return read_json(path)
    except CheckpointError:
        return {}


def _labels(merger: Merger) -> dict[str, Any]:
    """The labels, where a head was taken that has another number of them."""
    heads = [
        value
        for tensor, value in merger.saved.items()
        if tensor.endswith(HEADS) and value.ndim == 2
    ]
    labels = merger.base.config.get("id2label")
    if not heads or len(heads[-1]) == (len(labels) if isinstance(labels, dict) else 2):
        return {}
    names = {str(i): f"LABEL_{i}" for i in range(len(heads[-1]))}
    return {"id2label": names, "label2id": {label: int(i) for i, label in names.items()}}


def _tables(merger: Merger) -> dict[str, Any]:
    """What has changed of the tables with a row for each token, also in the configuration of a model of text inside."""
    stated: dict[str, Any] = {}
    if merger.tables.untied:
        stated["tie_word_embeddings"] = False
    if merger.tables.size is not None:
        stated["vocab_size"] = merger.tables.size
    changed = dict(stated)
    nested = merger.base.config.get("text_config")
    if stated and isinstance(nested, dict):
        changed["text_config"] = nested | stated
        if "vocab_size" not in merger.base.config:
            changed.pop("vocab_size", None)
    return changed


def write_adapter(merger: Merger, summary: Merged, rank: int | None, progress: Progress) -> Merged:
    """Write what the merger adds to the base as one LoRA; see `merge_checkpoint`."""
    _check_adapter(merger)
    first, embeddings = merger.adapters[0], _embeddings(merger.adapters)
    layers: dict[export.Layer, LowRank] = {}
    left_out, whole = 0.0, 0.0
    for name, entry in merger.vector.items():
        change, missed, square = export.truncated(entry, rank)
        tensor = merger.weights[name].tensor
        layer = export.Layer(
            _called(merger, tensor), merger.stored(tensor).shape, name in embeddings
        )
        layers[layer] = change
        left_out, whole = left_out + missed, whole + square
        progress(1)
    if not layers:
        raise InputError(
            f"The rule `{merger.rule}` changes no layer: there is no adapter to write."
        )
    tensors = export.tensors(layers)
    saved = {_spelled(merger.adapters, name): value for name, value in merger.saved.items()}
    tensors |= {f"{export.PREFIX}{name}": value for name, value in saved.items()}
    tasks = {adapter.folder.config.get("task_type") for adapter in merger.adapters}
    configuration = export.config(
        layers,
        base_model_name_or_path=first.folder.base or merger.base.published,
        fan_in_fan_out=any(weight.transposed for weight in merger.weights.values()),
        modules_to_save=sorted({name.rpartition(".")[0] for name in saved}) or None,
        task_type=tasks.pop() if len(tasks) == 1 else None,
    )
    size = sum(value.numel() * value.element_size() for value in tensors.values())
    summary = replace(summary, error=(left_out / whole) ** 0.5 if whole else 0.0, size=size)
    with staging.new_folder(summary.output, size=size) as folder:
        export.write(folder, configuration, tensors)
        (folder / "README.md").write_text(card.card(summary), encoding="utf-8")
    return replace(summary, written=True)


def _check_adapter(merger: Merger) -> None:
    """Refuse what an adapter of the base cannot hold."""
    if merger.tables.size is not None:
        raise InputError(
            "The vocabulary is another than the base's, so that an adapter would not fit the base. Write the whole "
            "model (`--as model`)."
        )
    if any(adapter.folder.wrapped for adapter in merger.adapters):
        raise InputError(
            "The adapters change single parameters (`target_parameters`), such as experts. These are written as part "
            "of the whole model only (`--as model`)."
        )


def _called(merger: Merger, tensor: str) -> str:
    """What an adapter calls the layer of a weight."""
    names = [adapter.names for adapter in merger.adapters]
    return next(known.layer(tensor) for known in names if tensor in known.tensors.values())


def _spelled(adapters: Sequence[Fitted], tensor: str) -> str:
    """What the adapter that has trained a tensor whole calls it."""
    return next(adapter.spelled[tensor] for adapter in adapters if tensor in adapter.saved)


def _embeddings(adapters: Sequence[Fitted]) -> set[str]:
    found = set()
    for adapter in adapters:
        for layer, factors in adapter.folder.factors.items():
            if factors.embedding:
                found.add(str(adapter.names.tensor(layer)).removesuffix(".weight"))
    return found
