"""W + ΔW, written from one safetensors file into another: a few rows at a time, and one rounding.

What does not change is copied by the operating system, without passing through the process.
"""

import errno
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import torch
from torch import Tensor

from perdure.errors import CheckpointError
from perdure.task_vector import Entry, LowRank, dense
from perdure.tensor_file import FLOATS, Stored, TensorFile, as_bytes, header, is_finite, new

BLOCK = 1 << 19  # values in a block of rows
CHUNK = 1 << 26  # bytes copied between two steps of the progress bar
Progress = Callable[[int], None]


@dataclass(frozen=True)
class Change:
    """ΔW of a stored weight: a matrix whose rows are those of W, or its columns if W is stored transposed (Conv1D).

    It is made when it is wanted.
    """

    make: Callable[[], Entry]
    transposed: bool = False

    def blocks(self, rows: int, step: int, place: Tensor) -> Iterator[Tensor]:
        """ΔW, `step` rows of W at a time, in `place`. A deferred matrix is made once."""
        entry = self.make()
        if isinstance(entry, LowRank):
            B, A = entry.B.to(place.dtype), entry.A.to(place.dtype)
            B, A = (A.T, B.T.contiguous()) if self.transposed else (B, A)
            for i in range(0, rows, step):
                part = B[i : i + step]
                yield torch.mm(part, A, out=place[: len(part) * A.shape[1]].view(len(part), -1))
        else:
            whole = dense(entry).to(place.dtype)
            whole = whole.T if self.transposed else whole
            for i in range(0, rows, step):
                yield whole[i : i + step]


class Places:
    """Memory that is used again and again: new memory costs more time than the arithmetic that is done in it."""

    def __init__(self) -> None:
        self._kept: dict[str, Tensor] = {}

    def get(self, use: str, values: int, dtype: torch.dtype) -> Tensor:
        """A vector of so many values; what was in it is lost."""
        size = values * dtype.itemsize
        if use not in self._kept or len(self._kept[use]) < size:
            self._kept[use] = torch.empty(size, dtype=torch.uint8)
        return self._kept[use][:size].view(dtype)


def fold(
    source: TensorFile,
    target: Path,
    changes: Mapping[str, Change],
    replaced: Mapping[str, Tensor],
    progress: Progress = lambda count: None,
) -> None:
    """Write a file with the tensors of another, some of them changed, some replaced or added.

    Raises
    ------
    CheckpointError
        A result is not finite.
    """
    tensors = {**source.tensors, **{name: new(value) for name, value in replaced.items()}}
    start, places = header(tensors, source.metadata or {"format": "pt"})
    work = Places()
    try:
        with open(target, "wb", buffering=0) as file:
            _write(file, start)
            for same, names in _runs(list(places), lambda name: name not in changes and name not in replaced):
                if same:
                    first, last = source.tensors[names[0]].start, source.tensors[names[-1]].stop
                    _copy(source.path, file, first, last - first, progress)
                    continue
                for name in names:
                    if name in replaced:
                        _write(file, as_bytes(replaced[name].contiguous()))
                    else:
                        _fold(source, name, changes[name], file, work)
                    progress(places[name].stop - places[name].start)
    except OSError as error:  # a failed write does not say of which file
        raise OSError(error.errno, error.strerror, str(error.filename or target)) from error


def size_of(source: TensorFile, replaced: Mapping[str, Tensor]) -> int:
    """The bytes of the file that `fold` will write."""
    tensors: dict[str, Stored] = {**source.tensors, **{name: new(value) for name, value in replaced.items()}}
    start, places = header(tensors, source.metadata or {"format": "pt"})
    return max([place.stop for place in places.values()], default=len(start))


def _runs(names: list[str], same: Callable[[str], bool]) -> Iterator[tuple[bool, list[str]]]:
    """Neighbours that stay as they are together, so that they are copied in one go."""
    run: list[str] = []
    for name in names:
        if run and same(run[-1]) != same(name):
            yield same(run[0]), run
            run = []
        run.append(name)
    if run:
        yield same(run[0]), run


def _fold(source: TensorFile, name: str, change: Change, file: IO[bytes], work: Places) -> None:
    stored = source.tensors[name]
    dtype = FLOATS[stored.dtype]
    wide = torch.promote_types(dtype, torch.float32)
    rows, step = stored.shape[0], max(1, BLOCK // max(1, stored.row))
    values = min(rows, step) * stored.row
    blocks = change.blocks(rows, step, work.get("change", values, wide))
    for i, block in zip(range(0, rows, step), blocks, strict=True):
        count = block.numel()
        W = source.read(name, i, i + len(block), work.get("W", count, dtype).view(torch.uint8)).flatten(1)
        total = work.get("total", count, wide).view(W.shape).copy_(W)
        torch.add(total, block, out=total)  # (of mixed types it would make copies)
        result = work.get("result", count, dtype).view(W.shape).copy_(total)  # rounded once
        if not is_finite(result):
            own = "the change is too great" if is_finite(W) else "the base model's own values are not"
            raise CheckpointError(f"`{name}` of the merged model would not be finite (NaN or Inf): {own}.")
        _write(file, as_bytes(result))


def _write(file: IO[bytes], content: bytes | memoryview) -> None:
    rest = memoryview(content)
    while rest:
        rest = rest[file.write(rest) :]


def _copy(source: Path, file: IO[bytes], start: int, count: int, progress: Progress) -> None:
    """Bytes from file to file, by the system if it can."""
    with open(source, "rb", buffering=0) as origin:
        by_system = hasattr(os, "copy_file_range")
        while count:
            done = 0
            if by_system:
                try:
                    done = os.copy_file_range(origin.fileno(), file.fileno(), min(count, CHUNK), start)
                except OSError as error:
                    if error.errno not in (errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EBADF):
                        raise
                    by_system = False
            if not done:  # some file systems copy nothing and do not say so
                part = os.pread(origin.fileno(), min(count, 1 << 22), start)
                if not part:
                    raise CheckpointError(f"`{source}` has become shorter while it was read. Begin again.")
                _write(file, part)
                done = len(part)
            start, count = start + done, count - done
            progress(done)
