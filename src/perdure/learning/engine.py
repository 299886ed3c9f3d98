"""Several processes that train one model: their number, their roles, and their messages.

All run the same program on the same values (`accelerate launch`); only the first one
writes.
"""

import os
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import broadcast, reduce
from torch import Tensor

from perdure.errors import InputError

PATIENCE = timedelta(days=7)
"""The time limit for a message between processes.

While the first process makes or opens the run, the others wait, and torch's usual timeout of ten to
thirty minutes might end them.
"""


def state() -> PartialState:
    """Return accelerate's view of the processes, which is made at the first call."""
    if int(os.environ.get("WORLD_SIZE", "1")) <= 1:
        return PartialState()
    # Without an accelerator, accelerate takes each process for the only one, unless it is told to
    # use the CPU.
    alone = not torch.accelerator.is_available()
    return PartialState(cpu=alone, timeout=PATIENCE)


def count() -> int:
    """Return the number of processes."""
    return state().num_processes


def number() -> int:
    """Return the number of this process, from 0."""
    return state().process_index


def first() -> bool:
    """Say whether this is the first process, the one that writes."""
    return state().is_main_process


def wait() -> None:
    """Wait until all processes have reached this point."""
    state().wait_for_everyone()


def device(name: str = "auto") -> torch.device:
    """Return the device that this process computes on.

    Parameters
    ----------
    name
        A device as torch names it (`cpu`, `cuda`, `cuda:1`, `mps`); `auto` is the accelerator of
        this machine, or the CPU if it has none.

    Raises
    ------
    InputError
        This machine has no such device.
    """
    # Each process of a launch has a device of its own, which accelerate has chosen.
    if name == "auto":
        return state().device or torch.device("cpu")
    try:
        chosen = torch.device(name)
        torch.empty(1, device=chosen)  # a device that is named may still not be there
    # Torch raises one of these for each way of lacking a device: no such name or number, a build
    # without its backend, a backend that is not implemented.
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        names = ["auto", "cpu"]
        accelerator = torch.accelerator.current_accelerator()
        if accelerator:
            names.append(accelerator.type)
        raise InputError(
            f"There is no device `{name}` here. Give one of: {', '.join(names)}."
        ) from error
    return chosen


@torch.no_grad()
def add_up(values: Sequence[Tensor]) -> None:
    """Replace each tensor by its sum over all processes."""
    if count() > 1:
        _through(values, lambda flat: reduce(flat, "sum"))


@torch.no_grad()
def as_the_first(values: Sequence[Tensor]) -> None:
    """Replace each tensor by its value in the first process."""
    if count() > 1:
        _through(values, broadcast)


def _through(values: Sequence[Tensor], exchange: Callable[[Tensor], Any]) -> None:
    """Exchange many tensors as one, because the number of messages dominates the cost.

    All travel in double precision, which holds each of them exactly. accelerate's functions
    are typed for nested structures; for a tensor they return a tensor.
    """
    flat = []
    sizes = []
    for value in values:
        column = value.detach().reshape(-1)
        flat.append(column.double())
        sizes.append(value.numel())
    received = exchange(torch.cat(flat)).split(sizes)
    for value, new in zip(values, received, strict=True):
        value.copy_(new.view_as(value))
