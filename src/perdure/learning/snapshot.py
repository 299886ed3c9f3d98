"""The state inside a task: what the training loop needs to go on where it was stopped, as one file.

There are no random states in it: each step begins with a state of its own, that follows from the seed of the run, the
task, and the number of the step (`perdure.seeds`).
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from safetensors.torch import save
from torch import Tensor

from perdure.errors import CheckpointError
from perdure.storage import files
from perdure.storage.tensors import TensorFile, as_bytes

T = TypeVar("T")


@dataclass(frozen=True)
class Snapshot:
    """Tensors by name, and `about` them what JSON can hold."""

    about: dict[str, Any]
    tensors: dict[str, Tensor]

    def save(self, path: Path) -> None:
        """Write it, in the place of an older one.

        Raises
        ------
        OutputError
            The disk is full, or writing is not allowed. The older one is as it was.
        """
        tensors = {
            name: value.detach().cpu().contiguous().clone() for name, value in self.tensors.items()
        }
        about = json.dumps(self.about)
        files.write(
            path, save(tensors, metadata={"about": about, "sha256": _digest(about, tensors)})
        )

    @classmethod
    def load(cls, path: Path) -> "Snapshot":
        """Read what `save` wrote.

        Raises
        ------
        CheckpointError
            The file is not what was written.
        """
        file = TensorFile(path)
        tensors, about = file.read_all(), file.metadata.get("about", "")
        if file.metadata.get("sha256") != _digest(about, tensors):
            raise CheckpointError(
                f"`{path}` is not what was written: it is damaged or was changed. Remove it, and the task that it "
                "belongs to is begun again."
            )
        return cls(files.parse_json(about, f"the metadata of `{path}`"), tensors)


def _digest(about: str, tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256(about.encode())
    for name, value in sorted(tensors.items()):
        digest.update(f"{name} {value.dtype} {list(value.shape)}".encode())
        digest.update(as_bytes(value))
    return digest.hexdigest()


def part(values: Mapping[str, T], name: str) -> dict[str, T]:
    """The values whose names begin with `name/`, without that."""
    start = f"{name}/"
    return {
        key.removeprefix(start): value for key, value in values.items() if key.startswith(start)
    }


def alike(value: Any, own: Any) -> bool:
    """Say whether two values have the same form: of JSON whatever the numbers are, of tensors shape and type."""
    if isinstance(own, dict):
        return (
            isinstance(value, dict)
            and value.keys() == own.keys()
            and all(alike(value[k], own[k]) for k in own)
        )
    if isinstance(own, list):
        return isinstance(value, list) and len(value) == len(own) and all(map(alike, value, own))
    if isinstance(own, Tensor):
        return isinstance(value, Tensor) and value.shape == own.shape and value.dtype == own.dtype
    kinds = (bool, str, type(None))
    return (
        type(value) is type(own)
        if isinstance(own, kinds)
        else type(value) in (int, float) and abs(value) < 2**53
    )
