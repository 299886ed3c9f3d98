"""Shapes and data types of the tensors in a model's weight files, and checks against them.

A model is not built if its `config.json` describes one far larger than its weight files.
"""

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules import module as registration

from perdure.errors import BackboneError, CheckpointError
from perdure.models.model_files import ModelFiles
from perdure.storage.tensors import TORCH, TensorFile, is_finite

Model = TypeVar("Model", bound=nn.Module)

# A model may have this many times as many tensors and values as its files. Some tensors
# are stored once and used several times (T5's embeddings three times), and some are split
# when loaded.
TIMES = 4

# The number of tensors that a model may have in addition, whatever its files contain.
AT_LEAST_TENSORS = 200

# The number of values that a model may have in addition, whatever its files contain.
AT_LEAST_NUMBERS = 10_000_000

# The maximum number of values in buffers, which a model computes itself, such as masks of
# positions × positions.
MOST_IN_BUFFERS = 250_000_000


class Stored(NamedTuple):
    """The shape and data type of a stored tensor, without its values."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def numbers(self) -> int:
        return math.prod(self.shape)


def stored(files: ModelFiles) -> dict[str, Stored]:
    """Return the shape and data type of each tensor in the weight files, by name.

    The values are not read into memory.

    Raises
    ------
    BackboneError
        A file is damaged or contains quantised values, or the files contain no tensors.
    """
    tensors: dict[str, Stored] = {}
    for path in files.weights:
        if path.suffix == ".safetensors":
            tensors |= _in_safetensors(path)
        else:
            tensors |= _in_pickle(path)
    if not any(tensor.numbers for tensor in tensors.values()):
        raise BackboneError(f"The weight files of `{files.source}` contain no values.")
    return tensors


def main_dtype(tensors: Mapping[str, Stored]) -> torch.dtype:
    """Return the most common data type among the stored floating-point values."""
    totals: dict[torch.dtype, int] = {}
    for tensor in tensors.values():
        dtype = tensor.dtype
        if dtype.is_floating_point:
            totals[dtype] = totals.get(dtype, 0) + tensor.numbers
    return max(totals, key=totals.__getitem__, default=torch.float32)


def _in_safetensors(path: Path) -> dict[str, Stored]:
    try:
        tensors = TensorFile(path).tensors
    except CheckpointError as error:
        raise BackboneError(str(error)) from error
    for name, tensor in tensors.items():
        if tensor.dtype not in TORCH:
            raise BackboneError(
                f"`{name}` in `{path}` has the type {tensor.dtype}, so the model is quantised and "
                "cannot be trained or merged. Give the original model."
            )
    return {name: Stored(tensor.shape, TORCH[tensor.dtype]) for name, tensor in tensors.items()}


def _in_pickle(path: Path) -> dict[str, Stored]:
    """Return the shape and data type of each tensor in a pickle that torch has written.

    torch's restricted unpickler creates only tensors and plain values, and runs no code.
    """
    values = torch.load(path, map_location="meta", weights_only=True)
    if not isinstance(values, Mapping):
        raise BackboneError(f"`{path}` contains a {type(values).__name__}, not a dict of tensors.")
    size = path.stat().st_size
    tensors: dict[str, Stored] = {}
    for name, value in values.items():
        if isinstance(value, Tensor):
            tensors[str(name)] = Stored(tuple(value.shape), value.dtype)
    for name, tensor in tensors.items():
        # With strides of zero, a tensor can claim more values than are stored.
        if tensor.numbers > size:
            raise BackboneError(
                f"`{name}` in `{path}` has more values than the whole file has bytes."
            )
    return tensors


def skeleton(source: str, make: Callable[[], Model], tensors: Mapping[str, Stored]) -> Model:
    """Build a model without allocating its weights, to check that it fits its weight files.

    Raises
    ------
    BackboneError
        The model is far larger than its weight files. Building stops as soon as this is known.
    """
    numbers = sum(tensor.numbers for tensor in tensors.values())
    most_tensors = TIMES * len(tensors) + AT_LEAST_TENSORS
    most_numbers = TIMES * numbers + AT_LEAST_NUMBERS
    with torch.device("meta"), _counted(source, most_tensors, most_numbers):
        return make()


@contextlib.contextmanager
def _counted(source: str, most_tensors: int, most_numbers: int) -> Iterator[None]:
    """Raise an error if a model built inside the context has too many tensors or values."""
    seen = {"tensors": 0, "numbers": 0, "in buffers": 0}

    def check(key: str, what: str, most: int) -> None:
        if seen[key] > most:
            raise BackboneError(
                f"The `config.json` of `{source}` describes a model that is far larger than its "
                f"weight files: more than {most} {what}. It is damaged, or belongs to another "
                "model."
            )

    # torch calls these as each parameter and buffer is registered, before the next one is made.
    def parameter(_: nn.Module, name: str, value: Tensor | None) -> None:
        if value is not None:
            seen["tensors"] += 1
            seen["numbers"] += value.numel()
        check("tensors", "tensors", most_tensors)
        check("numbers", "values", most_numbers)

    def buffer(_: nn.Module, name: str, value: Tensor | None) -> None:
        if value is not None:
            seen["in buffers"] += value.numel()
        check("in buffers", "values in buffers", MOST_IN_BUFFERS)

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
    """Check that all parameters of a model are finite.

    Parameters on the `meta` device have no values and are not checked.

    Raises
    ------
    BackboneError
        A parameter contains NaN or infinity.
    """
    for name, value in model.named_parameters():
        if not value.is_meta and not is_finite(value):
            raise BackboneError(
                f"`{name}` of `{source}` holds values that are not finite (NaN or infinite)."
            )
