"""A pre-trained model on disk: its folder, and its safetensors files with their headers.

Tensor values are not loaded.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from perdure import registry
from perdure.errors import CheckpointError, FetchError, InputError
from perdure.models import model_files
from perdure.storage.files import POINTER, check_fetched, open_regular, read_json
from perdure.storage.tensors import Stored, TensorFile

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
PICKLES = (
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "tf_model.h5",
    "flax_model.msgpack",
)
# Suffixes of files other than weights that belong to a model. Weights in other formats
# are not copied, because they would not match the merged model.
BESIDE = {".json", ".txt", ".model", ".jinja", ".tiktoken", ".spm", ".bpe", ".vocab"}
# Code is never copied, because it may be untrusted.
CODE = {".py", ".pyc", ".so"}
LEGAL = ("LICENSE", "LICENCE", "NOTICE", "COPYING", "USE_POLICY")
LEFT_OUT = {
    INDEX,
    "adapter_config.json",
    "pytorch_model.bin.index.json",
    "trainer_state.json",
    "README.md",
}
# The files to download from the hub: no pickles and no code.
PATTERNS = [
    "*.json",
    "*.safetensors",
    "*.txt",
    "*.model",
    "*.jinja",
    "*.tiktoken",
    "*.spm",
    "LICENSE*",
    "NOTICE*",
]


@dataclass(frozen=True)
class Checkpoint:
    """A model folder with safetensors files whose headers have been checked.

    Attributes
    ----------
    source
        The folder, hub id or short name (such as `minilm`) from which the model was opened.
    files
        The safetensors files, by name.
    where
        The name of the file that contains each tensor, by tensor name.
    index
        The parsed index file, or None if the model is in a single file.
    """

    source: str
    folder: Path
    files: Mapping[str, TensorFile]
    where: Mapping[str, str]
    config: Mapping[str, Any]
    index: Mapping[str, Any] | None

    @classmethod
    def open(cls, source: str | Path) -> "Checkpoint":
        """Find a model and read the headers of its safetensors files.

        Raises
        ------
        CheckpointError
            The folder has no safetensors weights, they are damaged, or its index refers
            to files outside the folder.
        FetchError
            The hub has no such model, or cannot be reached.
        """
        folder = find(source)
        _check_kind(folder)
        config = read_json(inside(folder, "config.json"))
        index = None
        # As in transformers, a single file takes precedence over an index.
        if _is_there(folder / SINGLE):
            names = [SINGLE]
        elif _is_there(folder / INDEX):
            index = read_json(inside(folder, INDEX))
            names = _shards(folder, index)
        else:
            raise _without_weights(folder)
        files = {name: TensorFile(inside(folder, name)) for name in names}
        where = _tensor_files(folder, files)
        if index is not None:
            _check_complete(folder, index["weight_map"], where)
        return cls(str(source), folder, files, where, config, index)

    def stored(self, tensor: str) -> Stored:
        """Return the dtype, the shape and the file position of a tensor."""
        return self.files[self.where[tensor]].tensors[tensor]

    @property
    def names(self) -> set[str]:
        """The names by which an adapter's configuration may refer to this model.

        `_name_or_path` in the model's configuration is not included, because it may refer
        to the model from which this one was derived.
        """
        resolved = self.folder.resolve()
        names = {last_part(self.source), resolved.name}
        # In the hub's cache, the folder is named after a commit: `models--ORG--NAME/snapshots/…`.
        cached = re.search(r"models--(?:[^/]+--)?([^/]+?)/snapshots/", f"{resolved}/")
        if cached:
            names.add(cached[1])
        return names

    @property
    def published(self) -> str:
        """The folder or hub id from which others can load the model."""
        return model_files.published(self.source)

    def companions(self) -> list[Path]:
        """Return the paths of all files to copy along with the weights, relative to the folder.

        These are the configuration, tokenizer, processor, additional modules and licence.

        Raises
        ------
        CheckpointError
            A file is a link that points outside the folder, or an unfetched Git LFS pointer.
        """
        names: list[Path] = []
        for path in self._files():
            is_companion = _belongs(path) or path.parent != self.folder
            if is_companion and path.suffix not in CODE:
                names.append(path.relative_to(self.folder))
        # Check them now, because a merge may run for a long time before it copies them.
        for name in names:
            path = inside(self.folder, str(name))
            with open_regular(path) as file:
                check_fetched(path, file.read(len(POINTER)))
        return names

    def code(self) -> list[str]:
        """Return the paths of the model's code files, which are not copied."""
        names: list[str] = []
        for path in self._files():
            if path.suffix in CODE:
                names.append(str(path.relative_to(self.folder)))
        return names

    def _files(self) -> list[Path]:
        """Return all files in the folder and in those subfolders that belong to the model."""
        # Sorted, because the order in which a folder lists its files is not reproducible.
        files: list[Path] = []
        for path in sorted(self.folder.iterdir()):
            if path.is_dir() and _is_module(path.name):
                files += [below for below in sorted(path.rglob("*")) if below.is_file()]
            elif path.is_file():
                files.append(path)
        return files


def _is_there(path: Path) -> bool:
    # A broken link counts, too, because following it later raises a specific error.
    return path.exists() or path.is_symlink()


def _check_kind(folder: Path) -> None:
    """Raise if the folder contains a run or an adapter instead of a model."""
    # Both are identified by a file. If there is also a `config.json`, the folder is a
    # model to which somebody has added that file.
    others = {
        "recipe.yaml": "a run: give only its folder",
        "adapter_config.json": "an adapter, not a model: give the base model first",
    }
    for file, kind in others.items():
        if (folder / file).is_file() and not (folder / "config.json").exists():
            raise CheckpointError(f"`{folder}` is {kind}.")


def _is_module(name: str) -> bool:
    """Return True if a subfolder belongs to a model.

    Examples are sentence-transformers' modules (`1_Pooling`) and additional chat templates.
    """
    return name == "additional_chat_templates" or bool(re.match(r"\d+_\w+$", name))


def find(source: str | Path) -> Path:
    """Return the folder of a model or an adapter, downloading it if necessary.

    Parameters
    ----------
    source
        A folder, a hub id, or the name of a model that is installed as a package.

    Raises
    ------
    InputError
        There is no such folder, and `source` is not a hub id.
    FetchError
        The hub has no such model, or cannot be reached.
    """
    folder = model_files.folder_of(str(source))
    if folder.is_dir():
        return folder
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", str(source)):
        raise InputError(
            f"There is no folder `{source}`. Give the folder of a model or an adapter, a hub id, "
            f"or a model installed as a package: {', '.join(registry.names('model'))}."
        )
    # Import this here, because most merges do not need the hub.
    import huggingface_hub

    try:
        return Path(huggingface_hub.snapshot_download(str(source), allow_patterns=PATTERNS))
    except (OSError, ValueError) as error:
        lines = str(error).splitlines() or [""]
        why = lines[0].removeprefix("Got: ")
        raise FetchError(
            f"There is no folder `{source}`, and the model was not found on the hub, "
            f"or the hub cannot be reached. ({why})"
        ) from error


def inside(folder: Path, name: str) -> Path:
    """Return the path of a file in a folder, with symbolic links resolved.

    Raises
    ------
    CheckpointError
        The file is missing, or is outside the folder.
    """
    try:
        home = folder.resolve(strict=True)
        path = (folder / name).resolve(strict=True)
    except (OSError, RuntimeError, ValueError) as error:
        raise CheckpointError(f"`{folder / name}` is missing, or is a broken link.") from error
    # In the hub's cache, a snapshot's files are links to `blobs`, two folders up.
    blobs = home
    if home.parent.name == "snapshots":
        blobs = home.parent.parent / "blobs"
    if not path.is_relative_to(home) and not path.is_relative_to(blobs):
        raise CheckpointError(
            f"`{folder / name}` points outside its folder, to `{path}`. "
            "If this is intended, copy the file into the folder."
        )
    return path


def last_part(path: str) -> str:
    """Return the last component of a hub id or a path (POSIX or Windows)."""
    return re.split(r"[/\\]", path.rstrip("/\\"))[-1]


def _belongs(path: Path) -> bool:
    """Return True if a file at the top level of a model folder is copied with the model."""
    name = path.name
    if name in LEFT_OUT or name.startswith("."):
        return False
    # The index of a weight variant, such as `model.fp16.safetensors.index.json`.
    if name.endswith(".safetensors.index.json"):
        return False
    return path.suffix in BESIDE or name.upper().startswith(LEGAL)


def _shards(folder: Path, index: Mapping[str, object]) -> list[str]:
    """Return the file names listed in an index; raise if one is not a plain file name."""
    table = index.get("weight_map")
    if not isinstance(table, dict):
        table = {}
    if not table or not all(isinstance(name, str) for name in table.values()):
        raise CheckpointError(
            f"`{folder / INDEX}` is damaged: its `weight_map` does not map tensors to files."
        )
    names = sorted(set(table.values()))
    for name in names:
        # A name that contains a folder (`../…`) could point to any file on the machine.
        if not re.fullmatch(r"[\w.-]+\.safetensors", name, flags=re.ASCII):
            raise CheckpointError(
                f"`{folder / INDEX}` lists the file {name!r}. "
                "Only plain names of safetensors files are allowed."
            )
    return names


def _tensor_files(folder: Path, files: Mapping[str, TensorFile]) -> dict[str, str]:
    """Return the name of the file that contains each tensor, by tensor name."""
    # If two tensors have the same name, it is unclear which one to use.
    where: dict[str, str] = {}
    for name, file in files.items():
        for tensor in file.tensors:
            if tensor in where:
                raise CheckpointError(
                    f"`{tensor}` is in two files of `{folder}`: `{where[tensor]}` and `{name}`."
                )
            where[tensor] = name
    return where


def _check_complete(folder: Path, table: Mapping[str, str], where: Mapping[str, str]) -> None:
    """Check that every tensor in the index is in one of the files."""
    missing = sorted(set(table) - set(where))
    if missing:
        raise CheckpointError(
            f"`{folder / INDEX}` lists `{missing[0]}`, which is in none of its files."
        )


def _without_weights(folder: Path) -> CheckpointError:
    pickles = [name for name in PICKLES if (folder / name).exists()]
    if pickles:
        return CheckpointError(
            f"`{folder}` has its weights only in `{pickles[0]}`, which is not read: unpickling "
            "can run arbitrary code. Load the model where you trust it, and save it with "
            "`save_pretrained` (safetensors)."
        )
    return CheckpointError(
        f"`{folder}` has no `{SINGLE}` and no `{INDEX}`. Give the folder of a transformers model."
    )
