"""Safetensors files with a checked header, whose tensors can be read in blocks of rows.

The library `safetensors` either maps an entire file into memory, which then counts
towards the memory of the process, or (as of 0.8) reads entire tensors: to read a matrix
in blocks of 256 rows, it reads the entire matrix for each block, which takes sixteen
times as long. It does not report the offset of a tensor, which is needed to copy it, and
does not detect duplicate names. Here, rows are read at their offset in the open file, and
memory is freed after use.

The header is not trusted: its size is bounded, and its tensors must fill the rest of the
file without gaps or overlaps, each with the number of bytes that its dtype and shape
require.
"""

import hashlib
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

MAX_HEADER = 100_000_000  # bytes, as in the library
FLOATS = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
}
WHOLE = {
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
}
TORCH: dict[str, torch.dtype] = FLOATS | WHOLE | {"BOOL": torch.bool}
# Types missing from TORCH are copied as bytes; nothing here computes with them.
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
    """A tensor in a file: its dtype (in the notation of safetensors), shape and byte range."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int

    @property
    def row(self) -> int:
        """The number of values in one row, that is, at one index of the first dimension."""
        return math.prod(self.shape[1:])


class TensorFile:
    """A safetensors file whose header has been read and checked.

    Attributes
    ----------
    tensors
        The dtype, shape and offsets of each tensor by name, in file order.

    Raises
    ------
    CheckpointError
        The file is damaged, or not a safetensors file.
    """

    def __init__(self, path: Path):
        self.path = path
        with open_regular(path) as file:
            # Later reads use this file, even if its path has been replaced in the meantime.
            self._descriptor = os.dup(file.fileno())
            weakref.finalize(self, os.close, self._descriptor)
            size = os.fstat(file.fileno()).st_size
            header, length = _read_header(path, file, size)
        self.metadata = _metadata(path, header.pop("__metadata__", {}))
        self.start = 8 + length
        stored = {name: _stored(path, name, value, self.start) for name, value in header.items()}
        # A header may list tensors in any order; gaps are detected after sorting by offset.
        by_offset = sorted(stored.items(), key=lambda item: (item[1].start, item[1].stop))
        self.tensors = dict(by_offset)
        _check_filled(path, self.tensors, self.start, size)

    def __contains__(self, name: object) -> bool:
        return name in self.tensors

    def read(
        self, name: str, first: int = 0, last: int | None = None, into: Tensor | None = None
    ) -> Tensor:
        """Return a tensor, or its rows from `first` to `last` (exclusive), in its stored dtype.

        Parameters
        ----------
        into
            A byte tensor to use as a buffer; by default, a new one is allocated.

        Raises
        ------
        CheckpointError
            torch does not support the dtype, memory runs out, or the file cannot be read.
        """
        stored = self.tensors[name]
        if stored.dtype not in TORCH:
            raise CheckpointError(
                f"`{name}` in `{self.path}` has the type {stored.dtype}, which cannot be read here."
            )
        dtype = TORCH[stored.dtype]
        shape = stored.shape
        start = stored.start
        stop = stored.stop
        # Rows are contiguous in the file, so a range of them is one piece.
        if last is not None:
            shape = (last - first, *stored.shape[1:])
            start += first * stored.row * dtype.itemsize
            stop = start + math.prod(shape) * dtype.itemsize
        try:
            content = torch.empty(stop - start, dtype=torch.uint8) if into is None else into
        except RuntimeError as error:
            raise CheckpointError(
                f"Out of memory for the {stop - start} bytes of `{name}` in `{self.path}`."
            ) from error
        self._fill(as_bytes(content), start)
        return content.view(dtype).reshape(shape)

    def read_all(self) -> dict[str, Tensor]:
        """Return every tensor, by name."""
        return {name: self.read(name) for name in self.tensors}

    def _fill(self, buffer: memoryview, start: int) -> None:
        """Fill a buffer with bytes from the file, beginning at offset `start`."""
        done = 0
        # One call reads at most 2 GiB on Linux, and may read less.
        while done < len(buffer):
            try:
                count = os.preadv(self._descriptor, [buffer[done:]], start + done)
            except OSError as error:
                raise CheckpointError(f"`{self.path}` cannot be read: {error.strerror}.") from error
            if not count:
                raise CheckpointError(
                    f"`{self.path}` became shorter while it was being read. Try again."
                )
            done += count


def _read_header(path: Path, file: Any, size: int) -> tuple[dict[str, object], int]:
    """Return the parsed header of a safetensors file, and the length of the header in bytes."""
    beginning = file.read(len(POINTER))
    check_fetched(path, beginning)
    length = int.from_bytes(beginning[:8], "little")
    # Bounded before it is read: a damaged file may claim any length.
    if size < 8 or not 2 <= length <= min(MAX_HEADER, size - 8):
        raise CheckpointError(
            f"`{path}` is not a safetensors file, or was cut: it has {size} bytes, and claims a "
            f"header of {length} (which must fit into the file, and be at most {MAX_HEADER})."
        )
    file.seek(8)
    return parse_json(file.read(length), f"the header of `{path}`"), length


def header(
    tensors: Mapping[str, Stored], metadata: Mapping[str, str]
) -> tuple[bytes, dict[str, Stored]]:
    """Return the header of a new safetensors file as bytes, and each tensor with its offsets.

    Parameters
    ----------
    tensors
        The file's tensors, in the order in which they will be written.
    """
    described: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
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
    # Like the library, start the first tensor at a multiple of eight bytes.
    text += b" " * (-len(text) % 8)
    placed: dict[str, Stored] = {}
    start = 8 + len(text)
    for name, stored in tensors.items():
        stop = start + stored.stop - stored.start
        placed[name] = Stored(stored.dtype, stored.shape, start, stop)
        start = stop
    return len(text).to_bytes(8, "little") + text, placed


def new(value: Tensor) -> Stored:
    """Describe a tensor that is not yet in a file; its offsets start at 0."""
    name = next(name for name, dtype in TORCH.items() if dtype == value.dtype)
    return Stored(name, tuple(value.shape), 0, value.numel() * value.element_size())


def is_finite(value: Tensor) -> bool:
    """Return True if all values are finite."""
    # NaN and infinities survive in a sum, which needs no second tensor. If the sum is not
    # finite, it may just have overflowed, so each value is checked.
    wide = torch.promote_types(value.dtype, torch.float32)
    total = value.sum(dtype=wide).item()
    return math.isfinite(total) or bool(torch.isfinite(value).all())


def as_bytes(value: Tensor) -> memoryview:
    """Return the bytes of a contiguous CPU tensor without copying them."""
    if not value.numel():
        return memoryview(b"")
    flat = value.detach().reshape(-1).view(torch.uint8)
    return flat.numpy().data


def digest_of(tensors: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of the names, shapes, dtypes and values of tensors, in any order."""
    digest = hashlib.sha256()
    for name, value in sorted(tensors.items()):
        digest.update(f"{name!r} {tuple(value.shape)} {value.dtype}".encode())
        digest.update(as_bytes(value.cpu().contiguous()))
    return digest.hexdigest()


def _metadata(path: Path, value: object) -> dict[str, str]:
    texts = isinstance(value, dict) and all(isinstance(text, str) for text in value.values())
    if not isinstance(value, dict) or not texts:
        raise CheckpointError(
            f"The header of `{path}` is damaged: `__metadata__` must map strings to strings."
        )
    return value


def _stored(path: Path, name: str, value: object, start: int) -> Stored:
    """Check one header entry, and return it with offsets from the start of the file."""
    entry = value if isinstance(value, dict) else {}
    dtype = entry.get("dtype")
    dtype = dtype if isinstance(dtype, str) and dtype in BITS else None
    shape = _counts(entry.get("shape"))
    offsets = _counts(entry.get("data_offsets"))
    if dtype is None or shape is None or offsets is None or len(offsets) != 2:
        shown = str(value)[:200]
        raise CheckpointError(f"The header of `{path}` is damaged: `{name}` is {shown}.")
    begin, end = offsets
    # Compared in bits, because the smallest types have fewer than eight.
    if 8 * (end - begin) != math.prod(shape) * BITS[dtype]:
        raise CheckpointError(
            f"The header of `{path}` is damaged: "
            f"`{name}` ({dtype}, {shape}) cannot have {end - begin} bytes."
        )
    return Stored(dtype, tuple(shape), start + begin, start + end)


def _counts(value: object) -> list[int] | None:
    """Return a value if it is a list of non-negative integers, otherwise None."""
    if not isinstance(value, list):
        return None
    for number in value:
        # `True` is an int to `isinstance`, but not to JSON.
        if type(number) is not int or not 0 <= number < 2**63:
            return None
    return value


def _check_filled(path: Path, tensors: Mapping[str, Stored], start: int, size: int) -> None:
    """Check that tensors, sorted by offset, fill a file from byte `start` to `size`."""
    position = start
    for name, stored in tensors.items():
        if stored.start != position:
            raise CheckpointError(
                f"The header of `{path}` is damaged: "
                f"`{name}` begins at byte {stored.start}, not {position}."
            )
        position = stored.stop
    if position != size:
        last = [*tensors, "the header"][len(tensors) - 1]
        raise CheckpointError(
            f"`{path}` has {size} bytes, but `{last}` ends at byte {position}: "
            "the file was cut, or something was added."
        )


def total_bytes(tensors: Iterable[Stored]) -> int:
    """Return the total size of the tensors in bytes."""
    return sum(stored.stop - stored.start for stored in tensors)
