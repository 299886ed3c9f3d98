"""Functions that add ΔW to the weights in a safetensors file and write the result to a new file.

W + ΔW is computed in blocks of rows and rounded once. The operating system copies
unchanged tensors, so they do not pass through this process.
"""

import errno
import itertools
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import torch
from torch import Tensor

from perdure.errors import CheckpointError
from perdure.storage.tensors import (
    FLOATS,
    Stored,
    TensorFile,
    as_bytes,
    header,
    is_finite,
    new,
)
from perdure.vectors.task_vector import Entry, LowRank, dense

BLOCK = 1 << 19  # values in a block of rows
CHUNK = 1 << 26  # bytes that the system copies between two steps of the progress bar
BUFFER = 1 << 22  # bytes to copy at a time if the system cannot copy
# Errors of file systems that do not support `copy_file_range`.
NO_SYSTEM_COPY = (errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EBADF)
Progress = Callable[[int], None]


@dataclass(frozen=True)
class Change:
    """The change ΔW to a stored weight W, computed on demand.

    Attributes
    ----------
    make
        A function that computes ΔW.
    transposed
        True if W is stored as in × out (`Conv1D`), so its rows correspond to columns of ΔW.
    """

    make: Callable[[], Entry]
    transposed: bool = False

    def whole(self) -> Tensor:
        """Return ΔW as a full matrix, transposed if W is stored transposed."""
        return self._as_stored(dense(self.make()))

    def _as_stored(self, change: Tensor) -> Tensor:
        return change.T if self.transposed else change

    def blocks(self, rows: int, step: int, memory: Tensor) -> Iterator[Tensor]:
        """Yield ΔW in blocks of `step` rows of W, computed in the buffer `memory`."""
        entry = self.make()
        if not isinstance(entry, LowRank):
            # Compute a deferred matrix only once for all blocks.
            full = self._as_stored(dense(entry).to(memory.dtype))
            for i in range(0, rows, step):
                yield full[i : i + step]
            return

        B = entry.B.to(memory.dtype)
        A = entry.A.to(memory.dtype)
        left = B
        right = A
        if self.transposed:
            # (B A)ᵀ = Aᵀ Bᵀ
            left = A.T
            right = B.T.contiguous()
        width = right.shape[1]
        for i in range(0, rows, step):
            block = left[i : i + step]
            height = len(block)
            product = memory[: height * width].view(height, -1)
            yield torch.mm(block, right, out=product)


@dataclass(frozen=True)
class Stack:
    """The change to a stack of matrices, such as the experts of a layer.

    Attributes
    ----------
    parts
        The change to each matrix, by its index in the stack. Other matrices do not change.
    """

    parts: Mapping[int, Change]

    def blocks(self, rows: int, step: int, memory: Tensor) -> Iterator[Tensor]:
        """Yield ΔW in blocks of `step` flattened matrices, computed in the buffer `memory`."""
        for first in range(0, rows, step):
            last = min(first + step, rows)
            block = memory.view(min(rows, step), -1)
            block = block[: last - first]
            for row, index in zip(block, range(first, last), strict=True):
                if index in self.parts:
                    change = self.parts[index].whole()
                    row.copy_(change.flatten())
                else:
                    row.zero_()
            yield block


class Workspace:
    """A set of reusable buffers, one for each kind of intermediate result.

    Matrices are folded block by block, and allocating new memory for every block would
    take longer than computing it.
    """

    def __init__(self) -> None:
        self._kept: dict[str, Tensor] = {}

    def get(self, use: str, values: int, dtype: torch.dtype) -> Tensor:
        """Return an uninitialised vector of `values` elements.

        The vector shares memory with any vector that was returned for the same `use` before.
        """
        size = values * dtype.itemsize
        memory = self._kept.get(use)
        if memory is None or len(memory) < size:
            memory = torch.empty(size, dtype=torch.uint8)
            self._kept[use] = memory
        return memory[:size].view(dtype)


def fold(
    source: TensorFile,
    target: Path,
    changes: Mapping[str, Change | Stack],
    replaced: Mapping[str, Tensor],
    progress: Progress = lambda count: None,
    *,
    copies: Mapping[str, str] | None = None,
) -> None:
    """Copy the tensors of a file to a new file while changing, replacing or adding some of them.

    Parameters
    ----------
    changes
        The change to add to each tensor, by tensor name.
    replaced
        Full tensors that replace those in `source`, or are new. Changes are added to them.
    copies
        New tensors that are copies of tensors in `source`, mapped to the names of the
        originals. Changes are added to the copies.

    Raises
    ------
    CheckpointError
        A tensor would not be finite.
    """
    copies = copies or {}
    start, stored = _header(source, replaced, copies)
    touched = {*changes, *replaced, *copies}
    work = Workspace()
    try:
        # Unbuffered, so that copies made by the system and our writes stay in order.
        with open(target, "wb", buffering=0) as file:
            _write(file, start)
            for is_touched, names in _runs(list(stored), touched):
                if not is_touched:
                    first = source.tensors[names[0]].start
                    last = source.tensors[names[-1]].stop
                    _copy(source.path, file, first, last - first, progress)
                    continue
                for name in names:
                    tensor = stored[name]
                    if name in changes:
                        rows = _reader(source, replaced, copies, name, work)
                        blocks = _fold(name, tensor, rows, changes[name], work)
                        for block in blocks:
                            _write(file, as_bytes(block))
                    elif name in replaced:
                        value = replaced[name].contiguous()
                        _write(file, as_bytes(value))
                    else:
                        origin = source.tensors[copies[name]]
                        _copy(
                            source.path,
                            file,
                            origin.start,
                            origin.stop - origin.start,
                            lambda count: None,
                        )
                    progress(tensor.stop - tensor.start)
    except OSError as error:
        # The error from a failed write does not name the file.
        path = str(error.filename or target)
        raise OSError(error.errno, error.strerror, path) from error


def _header(
    source: TensorFile, replaced: Mapping[str, Tensor], copies: Mapping[str, str]
) -> tuple[bytes, dict[str, Stored]]:
    """Return the header of the file to write and the position of each tensor in that file."""
    # Replaced tensors keep their position, and new ones come last. Tensors that are
    # adjacent in the source remain adjacent, so `_runs` can yield long runs.
    tensors = dict(source.tensors)
    for name, value in replaced.items():
        tensors[name] = new(value)
    for name, origin in copies.items():
        tensors[name] = source.tensors[origin]
    # Some versions of transformers reject a file whose metadata does not name the framework.
    metadata = source.metadata or {"format": "pt"}
    return header(tensors, metadata)


def size_of(
    source: TensorFile,
    replaced: Mapping[str, Tensor],
    copies: Mapping[str, str] | None = None,
) -> int:
    """Return the size in bytes of the file that `fold` would write."""
    start, stored = _header(source, replaced, copies or {})
    if not stored:
        return len(start)
    return max(tensor.stop for tensor in stored.values())


def _runs(names: list[str], touched: set[str]) -> Iterator[tuple[bool, list[str]]]:
    """Group adjacent names by whether they are in `touched`; yield this flag with each group."""
    for is_touched, run in itertools.groupby(names, key=touched.__contains__):
        yield is_touched, list(run)


def _reader(
    source: TensorFile,
    replaced: Mapping[str, Tensor],
    copies: Mapping[str, str],
    name: str,
    work: Workspace,
) -> Callable[[slice], Tensor]:
    """Return a function that reads rows of a tensor as it is before the change.

    If the tensor is in the source file, its rows are read into a reused buffer.
    """
    if name in replaced:
        return replaced[name].__getitem__
    name = copies.get(name, name)
    stored = source.tensors[name]

    def rows(which: slice) -> Tensor:
        count = which.stop - which.start
        memory = work.get("W", count * stored.row, FLOATS[stored.dtype])
        return source.read(
            name,
            first=which.start,
            last=which.stop,
            into=memory.view(torch.uint8),
        )

    return rows


def _fold(
    name: str,
    stored: Stored,
    rows_of: Callable[[slice], Tensor],
    change: Change | Stack,
    work: Workspace,
) -> Iterator[Tensor]:
    """Yield W + ΔW in blocks of rows, using the same buffer for all blocks."""
    dtype = FLOATS[stored.dtype]
    wide = torch.promote_types(dtype, torch.float32)
    rows = stored.shape[0]
    step = max(1, BLOCK // max(1, stored.row))
    values = min(rows, step) * stored.row
    blocks = change.blocks(rows, step, work.get("change", values, wide))
    for i, block in zip(range(0, rows, step), blocks, strict=True):
        count = block.numel()
        W = rows_of(slice(i, i + len(block))).flatten(1)
        total = work.get("total", count, wide).view(W.shape)
        result = work.get("result", count, dtype).view(W.shape)
        # Convert W first, because adding different dtypes would create copies.
        total.copy_(W)
        torch.add(total, block, out=total)
        # This is the only rounding to the dtype of the base model.
        result.copy_(total)
        if not is_finite(result):
            reason = "the values of the base model are not"
            if is_finite(W):
                reason = "the change is too large"
            raise CheckpointError(
                f"`{name}` of the merged model would not be finite (NaN or Inf): {reason}."
            )
        yield result


def _write(file: IO[bytes], content: bytes | memoryview) -> None:
    # An unbuffered file may write only part of its input.
    remaining = memoryview(content)
    while remaining:
        remaining = remaining[file.write(remaining) :]


def _copy(source: Path, file: IO[bytes], start: int, count: int, progress: Progress) -> None:
    """Copy bytes from one file to another, with a system call if the file system supports it."""
    with open(source, "rb", buffering=0) as origin:
        by_system = hasattr(os, "copy_file_range")
        while count:
            done = 0
            if by_system:
                try:
                    done = os.copy_file_range(
                        origin.fileno(),
                        file.fileno(),
                        min(count, CHUNK),
                        start,
                    )
                except OSError as error:
                    if error.errno not in NO_SYSTEM_COPY:
                        raise
                    by_system = False
            # Some file systems copy nothing and report no error.
            if not done:
                content = os.pread(origin.fileno(), min(count, BUFFER), start)
                if not content:
                    raise CheckpointError(
                        f"`{source}` became shorter while it was being read. Try again."
                    )
                _write(file, content)
                done = len(content)
            start += done
            count -= done
            progress(done)
