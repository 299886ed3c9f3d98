"""Safetensors files without loading them: a header that is checked, and tensors read by rows or copied by bytes.

The library `safetensors` either maps a whole file into memory, which then counts as the process's own, or (as of 0.8)
reads whole tensors: of a matrix in parts of 256 rows it reads all again for each part, sixteen times as slow. It says
neither where a tensor lies, which copying needs, nor that a name is there twice. Here a tensor is read where it lies,
by rows, of the file that was opened, and released after its use.

A header is believed only as far as the file bears it out: its size is bounded, and its tensors must fill the rest of
the file, each with the bytes of its type and shape, without gap or overlap.
"""

import json
import math
import os
import weakref
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from perdure.errors import CheckpointError
from perdure.storage.files import POINTER, check_fetched, open_regular, parse_json

MAX_HEADER = 100_000_000  # bytes, as the library has it
FLOATS = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
WHOLE = {
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
}
TORCH: dict[str, torch.dtype] = FLOATS | WHOLE | {"BOOL": torch.bool}
BITS = {name: 8 * dtype.itemsize for name, dtype in TORCH.items()} | {
    "C64": 64,
    "U64": 64,
    "U32": 32,
    "U16": 16,
    "F8_E5M2": 8,
    "F8_E4M3": 8,
    "F8_E8M0": 8,
    "F8_E4M3FNUZ": 8,
    "F8_E5M2FNUZ": 8,
    "F6_E2M3": 6,
    "F6_E3M2": 6,
    "F4": 4,
}


@dataclass(frozen=True)
class Stored:
    """A tensor in a file: its type by the name that safetensors has for it, its shape, and where its bytes lie."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int

    @property
    def row(self) -> int:
        """The number of values in a row: of one index of the first dimension."""
        return math.prod(self.shape[1:])


class TensorFile:
    """A safetensors file whose header has been read and checked.

    Attributes
    ----------
    tensors
        By name, in the order in which they lie in the file.

    Raises
    ------
    CheckpointError
        It is no safetensors file, or a damaged one.
    """

    def __init__(self, path: Path):
        self.path = path
        with open_regular(path) as file:
            # what is read later is of this file, even if another has taken its name
            self._number = os.dup(file.fileno())
            weakref.finalize(self, os.close, self._number)
            size = os.fstat(file.fileno()).st_size
            beginning = file.read(len(POINTER))
            check_fetched(path, beginning)
            length = int.from_bytes(beginning[:8], "little")
            if size < 8 or not 2 <= length <= min(MAX_HEADER, size - 8):
                raise CheckpointError(
                    f"`{path}` is no safetensors file, or was cut: it has {size} bytes, and its header says that it "
                    f"has {length} (allowed: at most {MAX_HEADER}, and what the file holds)."
                )
            file.seek(8)
            header = parse_json(file.read(length), f"the header of `{path}`")
        self.metadata = _metadata(path, header.pop("__metadata__", {}))
        self.start = 8 + length
        stored = {name: _stored(path, name, value, self.start) for name, value in header.items()}
        self.tensors = dict(sorted(stored.items(), key=lambda item: (item[1].start, item[1].stop)))
        _check_filled(path, self.tensors, self.start, size)

    def __contains__(self, name: object) -> bool:
        return name in self.tensors

    def read(
        self, name: str, first: int = 0, last: int | None = None, into: Tensor | None = None
    ) -> Tensor:
        """A tensor, or its rows from `first` up to `last`, as it is stored; `into` bytes that are there, or new ones.

        Raises
        ------
        CheckpointError
            Its type is none of torch's, or the file is not what it was.
        """
        stored = self.tensors[name]
        if stored.dtype not in TORCH:
            raise CheckpointError(
                f"`{name}` in `{self.path}` has the type {stored.dtype}, which cannot be read here."
            )
        dtype = TORCH[stored.dtype]
        start, stop, shape = stored.start, stored.stop, stored.shape
        if last is not None:
            shape = (last - first, *stored.shape[1:])
            start += first * stored.row * dtype.itemsize
            stop = start + math.prod(shape) * dtype.itemsize
        try:
            place = torch.empty(stop - start, dtype=torch.uint8) if into is None else into
        except RuntimeError as error:
            raise CheckpointError(
                f"There is no memory for the {stop - start} bytes of `{name}` in `{self.path}`."
            ) from error
        self._fill(as_bytes(place), start)
        return place.view(dtype).reshape(shape)

    def read_all(self) -> dict[str, Tensor]:
        """All tensors."""
        return {name: self.read(name) for name in self.tensors}

    def _fill(self, place: memoryview, start: int) -> None:
        done = 0
        while done < len(place):
            try:
                count = os.preadv(self._number, [place[done:]], start + done)
            except OSError as error:
                raise CheckpointError(f"`{self.path}` cannot be read: {error.strerror}.") from error
            if not count:
                raise CheckpointError(
                    f"`{self.path}` has become shorter while it was read. Begin again."
                )
            done += count


def header(
    tensors: Mapping[str, Stored], metadata: Mapping[str, str]
) -> tuple[bytes, dict[str, Stored]]:
    """The first bytes of a safetensors file with these tensors, in this order, and where each of them will lie."""
    described: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    offset = 0
    for name, stored in tensors.items():
        stop = offset + stored.stop - stored.start
        described[name] = {
            "dtype": stored.dtype,
            "shape": list(stored.shape),
            "data_offsets": [offset, stop],
        }
        offset = stop
    text = json.dumps(described, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    start, places = 8 + len(text), {}
    for name, stored in tensors.items():
        stop = start + stored.stop - stored.start
        places[name] = Stored(stored.dtype, stored.shape, start, stop)
        start = stop
    return len(text).to_bytes(8, "little") + text, places


def new(value: Tensor) -> Stored:
    """How a tensor will be stored, at a place that is not known yet."""
    name = next(name for name, dtype in TORCH.items() if dtype == value.dtype)
    return Stored(name, tuple(value.shape), 0, value.numel() * value.element_size())


def is_finite(value: Tensor) -> bool:
    """Whether all values are finite. In a sum NaN and infinities stay, so that mostly no value is looked at alone."""
    wide = torch.promote_types(value.dtype, torch.float32)
    return math.isfinite(value.sum(dtype=wide).item()) or bool(torch.isfinite(value).all())


def as_bytes(value: Tensor) -> memoryview:
    """The bytes of a contiguous tensor on the CPU, not copied."""
    flat: Any = value.detach().reshape(-1).view(torch.uint8).numpy() if value.numel() else b""
    return memoryview(flat)


def _metadata(path: Path, value: Any) -> dict[str, str]:
    if not isinstance(value, dict) or not all(isinstance(text, str) for text in value.values()):
        raise CheckpointError(
            f"The header of `{path}` is damaged: `__metadata__` holds more than texts."
        )
    return value


def _stored(path: Path, name: str, value: Any, start: int) -> Stored:
    """One entry of a header, its offsets counted from the beginning of the file."""
    entry = value if isinstance(value, dict) else {}
    dtype, shape, offsets = (
        entry.get("dtype"),
        _counts(entry.get("shape")),
        _counts(entry.get("data_offsets")),
    )
    dtype = dtype if isinstance(dtype, str) and dtype in BITS else None
    if dtype is None or shape is None or offsets is None or len(offsets) != 2:
        raise CheckpointError(f"The header of `{path}` is damaged: `{name}` is {str(value)[:200]}.")
    begin, end = offsets
    if 8 * (end - begin) != math.prod(shape) * BITS[dtype]:
        raise CheckpointError(
            f"The header of `{path}` is damaged: `{name}` ({dtype}, {shape}) cannot have {end - begin} bytes."
        )
    return Stored(dtype, tuple(shape), start + begin, start + end)


def _counts(value: Any) -> list[int] | None:
    """A list of natural numbers, or nothing."""
    natural = isinstance(value, list) and all(
        type(number) is int and 0 <= number < 2**63 for number in value
    )
    return value if natural else None


def _check_filled(path: Path, tensors: Mapping[str, Stored], start: int, size: int) -> None:
    place = start
    for name, stored in tensors.items():
        if stored.start != place:
            raise CheckpointError(
                f"The header of `{path}` is damaged: `{name}` begins at byte {stored.start}, not {place}."
            )
        place = stored.stop
    if place != size:
        last = [*tensors, "the header"][len(tensors) - 1]
        raise CheckpointError(
            f"`{path}` has {size} bytes, but `{last}` ends at byte {place}: the file was cut, or something was added."
        )


def total_bytes(tensors: Iterable[Stored]) -> int:
    """The bytes of the values of these tensors."""
    return sum(stored.stop - stored.start for stored in tensors)
