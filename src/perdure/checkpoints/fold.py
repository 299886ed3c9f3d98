"""W + ΔW, written from one safetensors file into another by rows, and rounded once.

Tensors that do not change are copied by the operating system and never enter the process.
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
CHUNK = 1 << 26  # bytes copied by the system between two steps of the progress bar
BUFFER = 1 << 22  # bytes copied at a time through the process
# Errors by which a file system says that it cannot copy by itself.
NO_SYSTEM_COPY = (errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EBADF)
Progress = Callable[[int], None]


@dataclass(frozen=True)
class Change:
    """ΔW of a stored weight, made on demand.

    Attributes
    ----------
    transposed
        Whether W is stored as in × out (`Conv1D`), so that its rows are the columns of ΔW.
    """

    make: Callable[[], Entry]
    transposed: bool = False

    def whole(self) -> Tensor:
        """Return ΔW in W's storage order."""
        return self._as_stored(dense(self.make()))

    def _as_stored(self, change: Tensor) -> Tensor:
        return change.T if self.transposed else change

    def blocks(self, rows: int, step: int, memory: Tensor) -> Iterator[Tensor]:
        """Yield ΔW, `step` rows of W at a time, computed in `memory`."""
        entry = self.make()
        if not isinstance(entry, LowRank):
            # A deferred matrix is made once for all blocks.
            whole = self._as_stored(dense(entry).to(memory.dtype))
            for i in range(0, rows, step):
                yield whole[i : i + step]
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
    """ΔW of a stack of matrices, such as the experts of a layer.

    Attributes
    ----------
    parts
        The changes by the index of their matrix; the other matrices stay as they are.
    """

    parts: Mapping[int, Change]

    def blocks(self, rows: int, step: int, memory: Tensor) -> Iterator[Tensor]:
        """Yield ΔW, `step` matrices at a time, each as a row, computed in `memory`."""
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


class Places:
    """A reusable memory buffer.

    Allocating memory for each block would take longer than the arithmetic in it.
    """

    def __init__(self) -> None:
        self._kept: dict[str, Tensor] = {}

    def get(self, use: str, values: int, dtype: torch.dtype) -> Tensor:
        """Return an uninitialised vector of `values` elements.

        It overwrites the vector that was last returned for the same use.
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
    """Write a file with the tensors of another, some of them changed, replaced or added.

    Parameters
    ----------
    replaced
        Whole tensors; a change of the same name is added to them.
    copies
        New tensors, each by the name of the tensor of the file that it begins as.

    Raises
    ------
    CheckpointError
        A result is not finite.
    """
    copies = copies or {}
    start, stored = _header(source, replaced, copies)
    touched = {*changes, *replaced, *copies}
    work = Places()
    try:
        # Without a buffer, so that the system's copies and our own writes keep their order.
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
        # A failed write does not say which file it was.
        path = str(error.filename or target)
        raise OSError(error.errno, error.strerror, path) from error


def _header(
    source: TensorFile, replaced: Mapping[str, Tensor], copies: Mapping[str, str]
) -> tuple[bytes, dict[str, Stored]]:
    """Return the first bytes of the file that is written, and the position of each tensor."""
    # Replaced tensors keep their position in the order; new ones come last. So neighbours in the
    # source stay neighbours, and `_runs` are long.
    tensors = dict(source.tensors)
    for name, value in replaced.items():
        tensors[name] = new(value)
    for name, origin in copies.items():
        tensors[name] = source.tensors[origin]
    # Some versions of transformers refuse a file that does not name its framework.
    metadata = source.metadata or {"format": "pt"}
    return header(tensors, metadata)


def size_of(
    source: TensorFile,
    replaced: Mapping[str, Tensor],
    copies: Mapping[str, str] | None = None,
) -> int:
    """Return the bytes of the file that `fold` will write."""
    start, stored = _header(source, replaced, copies or {})
    if not stored:
        return len(start)
    return max(tensor.stop for tensor in stored.values())


def _runs(names: list[str], touched: set[str]) -> Iterator[tuple[bool, list[str]]]:
    """Yield runs of neighbouring tensors that are all changed or all copied, and which of the
    two.
    """
    for is_touched, run in itertools.groupby(names, key=touched.__contains__):
        yield is_touched, list(run)


def _reader(
    source: TensorFile,
    replaced: Mapping[str, Tensor],
    copies: Mapping[str, str],
    name: str,
    work: Places,
) -> Callable[[slice], Tensor]:
    """Return a function that reads rows of a tensor before it is changed.

    The rows of a tensor in the file are read into a reused buffer.
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
    work: Places,
) -> Iterator[Tensor]:
    """Yield W + ΔW, a few rows at a time, in a reused buffer."""
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
        # W is widened first: an addition of mixed types would make copies.
        total.copy_(W)
        torch.add(total, block, out=total)
        # The only rounding to the type of the base.
        result.copy_(total)
        if not is_finite(result):
            reason = "the base model's own values are not"
            if is_finite(W):
                reason = "the change is too large"
            raise CheckpointError(
                f"`{name}` of the merged model would not be finite (NaN or Inf): {reason}."
            )
        yield result


def _write(file: IO[bytes], content: bytes | memoryview) -> None:
    # A raw file may write less than it is given.
    rest = memoryview(content)
    while rest:
        rest = rest[file.write(rest) :]


def _copy(source: Path, file: IO[bytes], start: int, count: int, progress: Progress) -> None:
    """Copy bytes from file to file, by the system if it can."""
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
                        f"`{source}` has become shorter while it was read. Begin again."
                    )
                _write(file, content)
                done = len(content)
            start += done
            count -= done
            progress(done)
