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
from perdure.storage.tensors import FLOATS, Stored, TensorFile, as_bytes, header, is_finite, new
from perdure.vectors.task_vector import Entry, LowRank, dense

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

    def whole(self) -> Tensor:
        """ΔW, as W is stored."""
        value = dense(self.make())
        return value.T if self.transposed else value

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


@dataclass(frozen=True)
class Stack:
    """ΔW of a stack of matrices, such as the experts of a layer; those that are not here stay as they are."""

    parts: Mapping[int, Change]

    def blocks(self, rows: int, step: int, place: Tensor) -> Iterator[Tensor]:
        """ΔW, `step` matrices at a time, in `place`, each as a row."""
        for first in range(0, rows, step):
            count = min(step, rows - first)
            block = place.view(min(rows, step), -1)[:count]
            for row, index in zip(block, range(first, first + count), strict=True):
                if index in self.parts:
                    row.copy_(self.parts[index].whole().flatten())
                else:
                    row.zero_()
            yield block


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
    changes: Mapping[str, Change | Stack],
    replaced: Mapping[str, Tensor],
    progress: Progress = lambda count: None,
    *,
    copies: Mapping[str, str] | None = None,
) -> None:
    """Write a file with the tensors of another, some of them changed, some replaced or added.

    Parameters
    ----------
    replaced
        Whole tensors; what is in `changes`, too, is added to them.
    copies
        New tensors, and those of the file that they begin as.

    Raises
    ------
    CheckpointError
        A result is not finite.
    """
    copies = copies or {}
    start, places = header(_tensors(source, replaced, copies), source.metadata or {"format": "pt"})
    work = Places()
    try:
        with open(target, "wb", buffering=0) as file:
            _write(file, start)
            for same, names in _runs(
                list(places), lambda name: name not in {*changes, *replaced, *copies}
            ):
                if same:
                    first, last = source.tensors[names[0]].start, source.tensors[names[-1]].stop
                    _copy(source.path, file, first, last - first, progress)
                    continue
                for name in names:
                    if name in changes:
                        rows = (
                            replaced[name].__getitem__
                            if name in replaced
                            else _reader(source, copies, name, work)
                        )
                        for block in _fold(name, places[name], rows, changes[name], work):
                            _write(file, as_bytes(block))
                    elif name in replaced:
                        _write(file, as_bytes(replaced[name].contiguous()))
                    else:
                        origin = source.tensors[copies[name]]
                        _copy(
                            source.path,
                            file,
                            origin.start,
                            origin.stop - origin.start,
                            lambda count: None,
                        )
                    progress(places[name].stop - places[name].start)
    except OSError as error:  # a failed write does not say of which file
        raise OSError(error.errno, error.strerror, str(error.filename or target)) from error


def _tensors(
    source: TensorFile, replaced: Mapping[str, Tensor], copies: Mapping[str, str]
) -> dict[str, Stored]:
    """Type, shape and size of all tensors of the file that is written, in their order."""
    whole = {name: new(value) for name, value in replaced.items()}
    return {
        **source.tensors,
        **whole,
        **{name: source.tensors[other] for name, other in copies.items()},
    }


def size_of(
    source: TensorFile, replaced: Mapping[str, Tensor], copies: Mapping[str, str] | None = None
) -> int:
    """The bytes of the file that `fold` will write."""
    start, places = header(
        _tensors(source, replaced, copies or {}), source.metadata or {"format": "pt"}
    )
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


def _reader(
    source: TensorFile, copies: Mapping[str, str], name: str, work: Places
) -> Callable[[slice], Tensor]:
    """A function that reads rows of a tensor, or of the one that it is a copy of, into memory that is used again."""
    name = copies.get(name, name)
    stored = source.tensors[name]

    def rows(which: slice) -> Tensor:
        place = work.get("W", (which.stop - which.start) * stored.row, FLOATS[stored.dtype])
        return source.read(name, which.start, which.stop, place.view(torch.uint8))

    return rows


def _fold(
    name: str,
    stored: Stored,
    rows_of: Callable[[slice], Tensor],
    change: Change | Stack,
    work: Places,
) -> Iterator[Tensor]:
    """W + ΔW, a few rows at a time, in memory that is used again."""
    dtype = FLOATS[stored.dtype]
    wide = torch.promote_types(dtype, torch.float32)
    rows, step = stored.shape[0], max(1, BLOCK // max(1, stored.row))
    values = min(rows, step) * stored.row
    blocks = change.blocks(rows, step, work.get("change", values, wide))
    for i, block in zip(range(0, rows, step), blocks, strict=True):
        count = block.numel()
        W = rows_of(slice(i, i + len(block))).flatten(1)
        total = work.get("total", count, wide).view(W.shape).copy_(W)
        torch.add(total, block, out=total)  # (of mixed types it would make copies)
        result = work.get("result", count, dtype).view(W.shape).copy_(total)  # rounded once
        if not is_finite(result):
            own = (
                "the change is too great" if is_finite(W) else "the base model's own values are not"
            )
            raise CheckpointError(
                f"`{name}` of the merged model would not be finite (NaN or Inf): {own}."
            )
        yield result


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
                    done = os.copy_file_range(
                        origin.fileno(), file.fileno(), min(count, CHUNK), start
                    )
                except OSError as error:
                    if error.errno not in (
                        errno.EXDEV,
                        errno.EINVAL,
                        errno.ENOSYS,
                        errno.EOPNOTSUPP,
                        errno.EBADF,
                    ):
                        raise
                    by_system = False
            if not done:  # some file systems copy nothing and do not say so
                part = os.pread(origin.fileno(), min(count, 1 << 22), start)
                if not part:
                    raise CheckpointError(
                        f"`{source}` has become shorter while it was read. Begin again."
                    )
                _write(file, part)
                done = len(part)
            start, count = start + done, count - done
            progress(done)
