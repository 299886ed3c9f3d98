"""A pre-trained model on disk: its folder, its safetensors files and their tensors.

No values are loaded.
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
# The files that belong to a model besides its weights. Weights in other formats are left behind:
# they would no longer be those of the model.
BESIDE = {".json", ".txt", ".model", ".jinja", ".tiktoken", ".spm", ".bpe", ".vocab"}
# Python is never copied: a stranger's code stays where it is.
CODE = {".py", ".pyc", ".so"}
LEGAL = ("LICENSE", "LICENCE", "NOTICE", "COPYING", "USE_POLICY")
LEFT_OUT = {
    INDEX,
    "adapter_config.json",
    "pytorch_model.bin.index.json",
    "trainer_state.json",
    "README.md",
}
# The files that are fetched from the hub. Pickles are not among them, and no code.
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
    """A model's folder with its safetensors files, whose headers have been checked.

    Attributes
    ----------
    source
        The folder, hub id or name (`minilm`, `dinov2`) that was asked for.
    files
        The safetensors files, by name.
    where
        The name of the file of each tensor.
    index
        The index of the files; None for a model in a single file.
    """

    source: str
    folder: Path
    files: Mapping[str, TensorFile]
    where: Mapping[str, str]
    config: Mapping[str, Any]
    index: Mapping[str, Any] | None

    @classmethod
    def open(cls, source: str | Path) -> "Checkpoint":
        """Find a model, and read the headers of its files.

        Raises
        ------
        CheckpointError
            The folder has no safetensors weights, or damaged ones, or an index that leads out.
        FetchError
            The hub has no such model, or cannot be reached.
        """
        folder = find(source)
        _check_kind(folder)
        config = read_json(inside(folder, "config.json"))
        index = None
        # As in transformers, a single file comes before an index.
        if _is_there(folder / SINGLE):
            names = [SINGLE]
        elif _is_there(folder / INDEX):
            index = read_json(inside(folder, INDEX))
            names = _shards(folder, index)
        else:
            raise _without_weights(folder)
        files = {name: TensorFile(inside(folder, name)) for name in names}
        where = _where(folder, files)
        if index is not None:
            _check_complete(folder, index["weight_map"], where)
        return cls(str(source), folder, files, where, config, index)

    def stored(self, tensor: str) -> Stored:
        """Return the type, the shape and the position of a tensor."""
        return self.files[self.where[tensor]].tensors[tensor]

    @property
    def names(self) -> set[str]:
        """The names by which an adapter may call the model.

        `_name_or_path` in its configuration is not among them: it may name the model that this one
        was made from.
        """
        resolved = self.folder.resolve()
        names = {last_part(self.source), resolved.name}
        # In the hub's cache the folder is called by its commit: `models--ORG--NAME/snapshots/…`.
        cached = re.search(r"models--(?:[^/]+--)?([^/]+?)/snapshots/", f"{resolved}/")
        if cached:
            names.add(cached[1])
        return names

    @property
    def published(self) -> str:
        """The folder or hub id under which others can load it."""
        return model_files.published(self.source)

    def companions(self) -> list[Path]:
        """Return the other files of the model, relative to its folder.

        These are the configuration, tokenizer, processor, further modules and the licence.

        Raises
        ------
        CheckpointError
            One of them is a link that leads out of the folder, or has not been fetched.
        """
        names: list[Path] = []
        for path in self._files():
            is_companion = _belongs(path) or path.parent != self.folder
            if is_companion and path.suffix not in CODE:
                names.append(path.relative_to(self.folder))
        # Checked now, because a merger may take long before they are copied.
        for name in names:
            path = inside(self.folder, str(name))
            with open_regular(path) as file:
                check_fetched(path, file.read(len(POINTER)))
        return names

    def code(self) -> list[str]:
        """Return the files with code of the model, which are not copied."""
        names: list[str] = []
        for path in self._files():
            if path.suffix in CODE:
                names.append(str(path.relative_to(self.folder)))
        return names

    def _files(self) -> list[Path]:
        """Return the files of the folder, and of the subfolders that belong to the model."""
        # Sorted, because a folder lists its files in no order that others would see again.
        files: list[Path] = []
        for path in sorted(self.folder.iterdir()):
            if path.is_dir() and _is_module(path.name):
                files += [below for below in sorted(path.rglob("*")) if below.is_file()]
            elif path.is_file():
                files.append(path)
        return files


def _is_there(path: Path) -> bool:
    # A link that leads nowhere counts: it gets a message of its own where it is followed.
    return path.exists() or path.is_symlink()


def _check_kind(folder: Path) -> None:
    """Refuse a run folder or an adapter given in place of a model."""
    # Both have a file by which they are known. A folder that also has a `config.json` is a model
    # beside which somebody has put one.
    others = {
        "recipe.yaml": "a run: give it alone",
        "adapter_config.json": "an adapter, no model",
    }
    for file, kind in others.items():
        if (folder / file).is_file() and not (folder / "config.json").exists():
            raise CheckpointError(
                f"`{folder}` is {kind}. First comes the base model, then the adapters."
            )


def _is_module(name: str) -> bool:
    """Return whether a subfolder belongs to a model.

    These are sentence-transformers' additional modules (`1_Pooling`) and chat templates.
    """
    return name == "additional_chat_templates" or bool(re.match(r"\d+_\w+$", name))


def find(source: str | Path) -> Path:
    """Return the folder of a model or an adapter.

    Parameters
    ----------
    source
        A folder, a hub id, or the name of a model that a package carries.

    Raises
    ------
    InputError
        There is no such folder, and `source` is no hub id.
    FetchError
        The hub has no such model, or cannot be reached.
    """
    folder = model_files.folder_of(str(source))
    if folder.is_dir():
        return folder
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", str(source)):
        raise InputError(
            f"There is no folder `{source}`. Give the folder of a model or an adapter, a hub id, "
            f"or a model that a package carries: {', '.join(registry.names('model'))}."
        )
    # Imported only here: most merges never need the hub.
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
    """Return the path of a file in a folder, with links resolved.

    Raises
    ------
    CheckpointError
        The file is missing, or lies outside the folder.
    """
    try:
        home = folder.resolve(strict=True)
        path = (folder / name).resolve(strict=True)
    except (OSError, RuntimeError, ValueError) as error:
        raise CheckpointError(
            f"`{folder / name}` is missing, or is a link that leads nowhere."
        ) from error
    # In the hub's cache the files of a snapshot are links to `blobs`, two folders up.
    blobs = home
    if home.parent.name == "snapshots":
        blobs = home.parent.parent / "blobs"
    if not path.is_relative_to(home) and not path.is_relative_to(blobs):
        raise CheckpointError(
            f"`{folder / name}` leads out of its folder, to `{path}`. "
            "If that is meant, copy the file into the folder."
        )
    return path


def last_part(path: str) -> str:
    """Return the last component of a path (including Windows paths) or hub id."""
    return re.split(r"[/\\]", path.rstrip("/\\"))[-1]


def _belongs(path: Path) -> bool:
    """Return whether a file in the model's own folder is copied with it."""
    name = path.name
    if name in LEFT_OUT or name.startswith("."):
        return False
    # An index of weights in a variant, such as `model.fp16.safetensors.index.json`.
    if name.endswith(".safetensors.index.json"):
        return False
    return path.suffix in BESIDE or name.upper().startswith(LEGAL)


def _shards(folder: Path, index: Mapping[str, object]) -> list[str]:
    """Return the files that an index names; only plain names are allowed."""
    table = index.get("weight_map")
    if not isinstance(table, dict):
        table = {}
    if not table or not all(isinstance(name, str) for name in table.values()):
        raise CheckpointError(
            f"`{folder / INDEX}` is damaged: its `weight_map` is no table of tensors and files."
        )
    names = sorted(set(table.values()))
    for name in names:
        # A name with a folder in it (`../…`) could lead anywhere on this machine.
        if not re.fullmatch(r"[\w.-]+\.safetensors", name, flags=re.ASCII):
            raise CheckpointError(
                f"`{folder / INDEX}` names the file {name!r}. "
                "Only plain names of safetensors files are followed."
            )
    return names


def _where(folder: Path, files: Mapping[str, TensorFile]) -> dict[str, str]:
    """Return the name of the file of each tensor."""
    # There is no telling which of two tensors with one name is meant.
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
    """Check that the files hold all tensors of the index."""
    missing = sorted(set(table) - set(where))
    if missing:
        raise CheckpointError(
            f"`{folder / INDEX}` names `{missing[0]}`, which is in none of its files."
        )


def _without_weights(folder: Path) -> CheckpointError:
    pickles = [name for name in PICKLES if (folder / name).exists()]
    if pickles:
        return CheckpointError(
            f"`{folder}` has its weights in `{pickles[0]}` only, which is not read: unpickling "
            "can run any code. Load the model where you trust it, and save it with "
            "`save_pretrained` (safetensors)."
        )
    return CheckpointError(
        f"`{folder}` has no `{SINGLE}` and no `{INDEX}`. Give the folder of a transformers model."
    )
