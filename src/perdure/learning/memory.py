"""A device without enough memory, reported as one sentence that names the settings that help."""

import contextlib
from collections.abc import Callable, Iterator

import torch

from perdure.errors import OutOfMemory
from perdure.learning.training import Training
from perdure.models.backbone import Backbone

ON_A_CPU = "can't allocate memory"
"""The part of torch's message by which a lack of memory on a CPU is known; it has no class."""


@contextlib.contextmanager
def explained(
    backbone: Backbone, training: Training, save: Callable[[], None] = lambda: None
) -> Iterator[None]:
    """Turn a lack of memory inside the block into an `OutOfMemory` that says what helps.

    Parameters
    ----------
    save
        A function that saves what would be lost, called before the error is raised.

    Raises
    ------
    OutOfMemory
        The device had too little memory.
    """
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        is_known = isinstance(error, torch.OutOfMemoryError | MemoryError)
        if isinstance(error, OutOfMemory) or not (is_known or ON_A_CPU in str(error)):
            raise
        save()
        raise OutOfMemory(
            f"The memory of `{backbone.device}` is full; what was learned is saved. Go on with "
            f"{_listed(_harmless(training))}. A new run also takes less with "
            f"{_listed(_others(backbone, training))}."
        ) from error


def _harmless(training: Training) -> list[str]:
    """Return the settings that save memory, and with which a run can continue."""
    settings = []
    if not training.gradient_checkpointing:
        settings.append("`--set training.gradient_checkpointing=true`")
    settings.append("more processes and `--set training.sharding=fsdp`")
    return settings


def _others(backbone: Backbone, training: Training) -> list[str]:
    """Return the settings that save memory, but change what is learned."""
    smaller = f"a smaller `batch_size` (now {training.batch_size})"
    settings = [f"{smaller} and a larger `gradient_accumulation`"]
    if not training.bf16:
        settings.append("`bf16: true`")
    if not backbone.has_heads and backbone.settings["dtype"] == "float32":
        settings.append("`backbone: {dtype: bfloat16}`")
    length = "image_size" if backbone.kind == "image" else "max_length"
    settings.append(f"a smaller `{length}`")
    return settings


def _listed(settings: list[str]) -> str:
    *others, last = settings
    return f"{', '.join(others)} or {last}" if others else last
