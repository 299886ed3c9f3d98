"""A checkpoint in the middle of a task: one file with everything needed to resume training.

It contains no random state, because each step is seeded separately, from the seed of the
run, the name of the task and the number of the step (`perdure.seeds`).
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
State = dict[str, Any]
"""Tensors and JSON values, by name."""


def size_of(value: object) -> int:
    """Return the size in bytes of all tensors and texts in a state, or in one of its values.

    The names by which they are stored, and single numbers, do not count.
    """
    if isinstance(value, Tensor):
        return value.nbytes
    if isinstance(value, str):
        return len(value.encode())
    if isinstance(value, Mapping):
        return sum(size_of(one) for one in value.values())
    if isinstance(value, list):
        return sum(size_of(one) for one in value)
    return 0


@dataclass(frozen=True)
class Snapshot:
    """A snapshot of a task's training: `tensors` by name, and JSON values in `about`."""

    about: State
    tensors: dict[str, Tensor]

    def save(self, path: Path) -> None:
        """Write the snapshot to a file, replacing any older one.

        Raises
        ------
        OutputError
            The disk is full, or writing is not allowed. An older file is left unchanged.
        """
        # Cloned, because safetensors refuses tensors that share memory, and training
        # continues to change these tensors.
        tensors = {}
        for name, value in self.tensors.items():
            tensors[name] = value.detach().cpu().contiguous().clone()
        about = json.dumps(self.about)
        metadata = {
            "about": about,
            "sha256": _digest(about, tensors),
        }
        content = save(tensors, metadata=metadata)
        files.write(path, content)

    @classmethod
    def load(cls, path: Path) -> "Snapshot":
        """Read a snapshot that `save` wrote.

        Raises
        ------
        CheckpointError
            The file is damaged, or was changed after it was written.
        """
        file = TensorFile(path)
        tensors = file.read_all()
        about = file.metadata.get("about", "")
        if file.metadata.get("sha256") != _digest(about, tensors):
            raise CheckpointError(
                f"`{path}` is not what was written: it is damaged or was changed. Remove it to "
                "start its task again."
            )
        return cls(files.parse_json(about, f"the metadata of `{path}`"), tensors)


def _digest(about: str, tensors: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of a snapshot's content, independent of the order of the tensors."""
    digest = hashlib.sha256(about.encode())
    for name, value in sorted(tensors.items()):
        # The bytes alone would not reveal a transposed tensor, or one with another dtype.
        shape = list(value.shape)
        header = f"{name} {value.dtype} {shape}"
        digest.update(header.encode())
        digest.update(as_bytes(value))
    return digest.hexdigest()


# -- states by name


def part(values: Mapping[str, T], name: str) -> dict[str, T]:
    """Return the values whose names begin with `name/`, without that prefix.

    Examples
    --------
    >>> part({"best/0": 1.0, "best/1": 2.0, "parameter/0": 3.0}, "best")
    {'0': 1.0, '1': 2.0}
    """
    start = f"{name}/"
    values_of_part = {}
    for key, value in values.items():
        if key.startswith(start):
            values_of_part[key.removeprefix(start)] = value
    return values_of_part


def tensors_of(values: Mapping[str, object], name: str) -> dict[str, Tensor]:
    """Return the tensors among the values, with `name/` added in front of their names."""
    tensors = {}
    for key, value in values.items():
        if isinstance(value, Tensor):
            tensors[f"{name}/{key}"] = value
    return tensors


def without_tensors(values: State) -> State:
    """Return the values that are not tensors, and can therefore be stored as JSON."""
    others = {}
    for key, value in values.items():
        if not isinstance(value, Tensor):
            others[key] = value
    return others


def alike(value: object, model: object) -> bool:
    """Return True if a value has the same form as a reference value, the `model`.

    Tensors must have the same shape and dtype. JSON values must have the same keys,
    lengths and types, but the numbers, strings and Booleans in them may differ.
    """
    if isinstance(model, dict):
        return (
            isinstance(value, dict)
            and value.keys() == model.keys()
            and all(alike(value[key], model[key]) for key in model)
        )
    if isinstance(model, list):
        return (
            isinstance(value, list) and len(value) == len(model) and all(map(alike, value, model))
        )
    if isinstance(model, Tensor):
        return (
            isinstance(value, Tensor) and value.shape == model.shape and value.dtype == model.dtype
        )
    if isinstance(model, (bool, str, type(None))):
        return type(value) is type(model)
    # An int may take the place of a float, such as 1 for 1.0, but `True`, which is an int
    # in Python, may not. NaN, infinity and integers that would overflow as floats fail
    # the comparison.
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    return abs(value) < 2**53
