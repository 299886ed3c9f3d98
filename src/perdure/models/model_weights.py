"""What the weight files of a model hold, read from their headers, and a model that is built no larger than that."""

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules import module as registration

from perdure.errors import BackboneError, CheckpointError
from perdure.models.model_files import ModelFiles
from perdure.storage.tensors import TORCH, TensorFile, is_finite

TIMES = 4
"""A model may have that many times the tensors, and numbers, of its files: some are stored once and used several times
(T5's embeddings thrice), and some that are stored as one are several in the model."""
AT_LEAST_TENSORS = 200
AT_LEAST_NUMBERS = 10_000_000
MOST_IN_BUFFERS = 250_000_000
"""Numbers in tables that a model computes for itself, such as masks of positions × positions."""


class Stored(NamedTuple):
    """What is known of a tensor without its values."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def numbers(self) -> int:
        return math.prod(self.shape)


def stored(files: ModelFiles) -> dict[str, Stored]:
    """The tensors in the weight files, by name; of their values nothing is read.

    Raises
    ------
    BackboneError
        A file is damaged, or holds values that are quantised.
    """
    tensors: dict[str, Stored] = {}
    for path in files.weights:
        tensors |= _in_safetensors(path) if path.suffix == ".safetensors" else _in_pickle(path)
    if not any(tensor.numbers for tensor in tensors.values()):
        raise BackboneError(f"The weight files of `{files.source}` hold no values.")
    return tensors


def main_dtype(tensors: Mapping[str, Stored]) -> torch.dtype:
    """The type of most of the numbers that are stored as floats."""
    numbers: dict[torch.dtype, int] = {}
    for tensor in tensors.values():
        if tensor.dtype.is_floating_point:
            numbers[tensor.dtype] = numbers.get(tensor.dtype, 0) + tensor.numbers
    return max(numbers, key=numbers.__getitem__, default=torch.float32)


def _in_safetensors(path: Path) -> dict[str, Stored]:
    try:
        tensors = TensorFile(path).tensors
    except CheckpointError as error:
        raise BackboneError(str(error)) from error
    for name, tensor in tensors.items():
        if tensor.dtype not in TORCH:
            raise BackboneError(
                f"`{name}` in `{path}` has the type {tensor.dtype}, so the model is quantised, and cannot be trained "
                "or merged here. Give the model from which it was made."
            )
    return {name: Stored(tensor.shape, TORCH[tensor.dtype]) for name, tensor in tensors.items()}


def _in_pickle(path: Path) -> dict[str, Stored]:
    """The tensors of a file of torch, by its restricted unpickler: it makes tensors and plain values, and runs no code.

    A tensor there may claim more values than are stored, by strides of zero.
    """
    values = torch.load(path, map_location="meta", weights_only=True)
    if not isinstance(values, Mapping):
        raise BackboneError(f"`{path}` holds no table of tensors, but {type(values).__name__}.")
    tensors = {
        str(name): Stored(tuple(value.shape), value.dtype)
        for name, value in values.items()
        if isinstance(value, Tensor)
    }
    size = path.stat().st_size
    vast = [name for name, tensor in tensors.items() if tensor.numbers > size]
    if vast:
        raise BackboneError(
            f"`{vast[0]}` in `{path}` has more values than the whole file has bytes."
        )
    return tensors


def skeleton(source: str, make: Callable[[], Any], tensors: Mapping[str, Stored]) -> Any:
    """Build a model without its values, and stop as soon as it is larger than its weight files can bear out.

    Raises
    ------
    BackboneError
        It is.
    """
    most = TIMES * len(tensors) + AT_LEAST_TENSORS
    numbers = TIMES * sum(tensor.numbers for tensor in tensors.values()) + AT_LEAST_NUMBERS
    with torch.device("meta"), _counted(source, most, numbers):
        return make()


@contextlib.contextmanager
def _counted(source: str, tensors: int, numbers: int) -> Iterator[None]:
    """Stop the building of a model at so many tensors, or numbers in them."""
    seen = {"tensors": 0, "numbers": 0, "in buffers": 0}

    def too_large(what: str, most: int) -> BackboneError:
        return BackboneError(
            f"The `config.json` of `{source}` describes a model that is far larger than its weight files: more than "
            f"{most} {what}. It is damaged, or belongs to another model."
        )

    def parameter(_: nn.Module, name: str, value: Tensor | None) -> None:
        if value is not None:
            seen["tensors"] += 1
            seen["numbers"] += value.numel()
        if seen["tensors"] > tensors:
            raise too_large("tensors", tensors)
        if seen["numbers"] > numbers:
            raise too_large("numbers", numbers)

    def buffer(_: nn.Module, name: str, value: Tensor | None) -> None:
        seen["in buffers"] += 0 if value is None else value.numel()
        if seen["in buffers"] > MOST_IN_BUFFERS:
            raise too_large("numbers in tables", MOST_IN_BUFFERS)

    hooks = [
        registration.register_module_parameter_registration_hook(parameter),
        registration.register_module_buffer_registration_hook(buffer),
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def check_finite(source: str, model: nn.Module) -> None:
    """Raise `BackboneError` if a parameter has values that are not finite: no answer of the model would be one."""
    for name, value in model.named_parameters():
        if not is_finite(value):
            raise BackboneError(
                f"`{name}` of `{source}` holds values that are not finite (NaN or infinite)."
            )
