"""A pre-trained model on disk: its folder, its safetensors files, and where each tensor lies. Nothing is loaded."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from perdure.errors import CheckpointError, FetchError, InputError
from perdure.models import model_files
from perdure.storage.files import POINTER, check_fetched, open_regular, read_json
from perdure.storage.tensors import Stored, TensorFile

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json", "tf_model.h5", "flax_model.msgpack")
# What belongs to a model beside its weights. Weights in other formats would no longer be those of the model.
BESIDE = {".json", ".txt", ".model", ".jinja", ".tiktoken", ".spm", ".bpe", ".vocab"}
CODE = {".py", ".pyc", ".so"}  # Python: of a stranger's model it is left where it is
LEGAL = ("LICENSE", "LICENCE", "NOTICE", "COPYING", "USE_POLICY")
LEFT_OUT = {
    INDEX,
    "adapter_config.json",
    "pytorch_model.bin.index.json",
    "trainer_state.json",
    "README.md",
}
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
    """A model's folder with its safetensors files, their headers checked.

    Attributes
    ----------
    source
        As it was asked for: a folder, a hub id, or `minilm` or `dinov2`.
    files
        By file name.
    where
        The file of each tensor.
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
            The folder holds no safetensors weights, or damaged ones, or an index that leads out of it.
        FetchError
            The hub has no such model, or cannot be reached.
        """
        folder = find(source)
        others = {
            "recipe.yaml": "a run: give it alone",
            "adapter_config.json": "an adapter, no model",
        }
        for file, what in others.items():
            if (folder / file).is_file() and not (folder / "config.json").exists():
                raise CheckpointError(
                    f"`{folder}` is {what}. First comes the base model, then the adapters."
                )
        config = read_json(inside(folder, "config.json"))
        if (folder / SINGLE).exists() or (folder / SINGLE).is_symlink():
            index, found = None, [SINGLE]
        elif (folder / INDEX).exists() or (folder / INDEX).is_symlink():
            index = read_json(inside(folder, INDEX))
            found = _shards(folder, index)
        else:
            raise _without_weights(folder)
        files = {name: TensorFile(inside(folder, name)) for name in found}
        where = _where(folder, files)
        if index is not None:
            missing = sorted(set(index["weight_map"]) - set(where))
            if missing:
                raise CheckpointError(
                    f"`{folder / INDEX}` names `{missing[0]}`, which is in none of its files."
                )
        return cls(str(source), folder, files, where, config, index)

    def stored(self, tensor: str) -> Stored:
        """Type, shape and place of a tensor."""
        return self.files[self.where[tensor]].tensors[tensor]

    @property
    def names(self) -> set[str]:
        """What others may call it. (`_name_or_path` in its configuration may name what it was itself made from.)"""
        cached = re.search(r"models--(?:[^/]+--)?([^/]+?)/snapshots/", f"{self.folder.resolve()}/")
        return {last_part(self.source), self.folder.resolve().name} | (
            {cached[1]} if cached else set()
        )

    @property
    def published(self) -> str:
        """The folder or hub id under which others can load it."""
        return model_files.published(self.source)

    def companions(self) -> list[Path]:
        """The other files of the model, relative to its folder: configuration, tokenizer, processor, modules, licence.

        Raises
        ------
        CheckpointError
            One of them is a link that leads out of the folder.
        """
        found = [path for path in self._files() if _belongs(path) or path.parent != self.folder]
        names = [path.relative_to(self.folder) for path in found if path.suffix not in CODE]
        for name in names:
            path = inside(self.folder, str(name))
            with open_regular(path) as file:
                check_fetched(path, file.read(len(POINTER)))
        return names

    def code(self) -> list[str]:
        """The files with code of the model, which are not copied."""
        return [str(path.relative_to(self.folder)) for path in self._files() if path.suffix in CODE]

    def _files(self) -> list[Path]:
        """The files of the folder, and of the folders in it that belong to the model."""
        files: list[Path] = []
        for path in sorted(self.folder.iterdir()):
            # the further modules of sentence-transformers, such as `1_Pooling`
            if path.is_dir() and (
                re.match(r"\d+_\w+$", path.name) or path.name == "additional_chat_templates"
            ):
                files += [below for below in sorted(path.rglob("*")) if below.is_file()]
            elif path.is_file():
                files.append(path)
        return files


def find(source: str | Path) -> Path:
    """The folder of a model or an adapter: a folder, a hub id, or a model that a package carries.

    Raises
    ------
    InputError
        There is no such folder, and it is no hub id.
    FetchError
        The hub has no such model, or cannot be reached.
    """
    folder = model_files.folder_of(str(source))
    if folder.is_dir():
        return folder
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", str(source)):
        raise InputError(
            f"There is no folder `{source}`. Give the folder of a model or an adapter, a hub id, `minilm` or `dinov2`."
        )
    import huggingface_hub

    try:
        return Path(huggingface_hub.snapshot_download(str(source), allow_patterns=PATTERNS))
    except (OSError, ValueError) as error:
        why = (str(error).splitlines() or [""])[0].removeprefix("Got: ")
        raise FetchError(
            f"`{source}` is no folder, and the hub has none or is out of reach. ({why})"
        ) from error


def inside(folder: Path, name: str) -> Path:
    """The path of a file in a folder, after links are followed.

    Raises
    ------
    CheckpointError
        It is not there, or lies outside the folder. (In the hub's cache, files are links into `blobs` beside it.)
    """
    try:
        home, path = folder.resolve(strict=True), (folder / name).resolve(strict=True)
    except (OSError, RuntimeError, ValueError) as error:
        raise CheckpointError(
            f"`{folder / name}` is missing, or is a link that leads nowhere."
        ) from error
    blobs = home.parent.parent / "blobs" if home.parent.name == "snapshots" else home
    if not path.is_relative_to(home) and not path.is_relative_to(blobs):
        raise CheckpointError(
            f"`{folder / name}` leads out of its folder, to `{path}`. If that is meant, copy the file into the folder."
        )
    return path


def last_part(path: str) -> str:
    """The last component of a path or hub id."""
    return re.split(r"[/\\]", path.rstrip("/\\"))[-1]


def _belongs(path: Path) -> bool:
    if (
        path.name in LEFT_OUT
        or path.name.startswith(".")
        or path.name.endswith(".safetensors.index.json")
    ):
        return False
    return path.suffix in BESIDE or path.name.upper().startswith(LEGAL)


def _shards(folder: Path, index: Mapping[str, Any]) -> list[str]:
    """The files that an index names: plain names only."""
    table = index.get("weight_map")
    if (
        not isinstance(table, dict)
        or not table
        or not all(isinstance(name, str) for name in table.values())
    ):
        raise CheckpointError(
            f"`{folder / INDEX}` is damaged: its `weight_map` is no table of tensors and files."
        )
    for name in table.values():
        if not re.fullmatch(r"[\w.-]+\.safetensors", name, flags=re.ASCII):
            raise CheckpointError(
                f"`{folder / INDEX}` names the file {name!r}. Only plain names of safetensors files are followed."
            )
    return sorted(set(table.values()))


def _where(folder: Path, files: Mapping[str, TensorFile]) -> dict[str, str]:
    where: dict[str, str] = {}
    for name, file in files.items():
        for tensor in file.tensors:
            if tensor in where:
                raise CheckpointError(
                    f"`{tensor}` is in two files of `{folder}`: `{where[tensor]}` and `{name}`."
                )
            where[tensor] = name
    return where


def _without_weights(folder: Path) -> CheckpointError:
    pickles = [name for name in PICKLES if (folder / name).exists()]
    if pickles:
        return CheckpointError(
            f"`{folder}` has its weights in `{pickles[0]}` only, which is not read: unpickling can run any code. "
            "Load the model where you trust it, and save it with `save_pretrained` (safetensors)."
        )
    return CheckpointError(
        f"`{folder}` has no `{SINGLE}` and no `{INDEX}`. Give the folder of a transformers model."
    )
