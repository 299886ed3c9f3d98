"""Several processes that train one model: how many they are, which this one is, and what they say to each other.

All run the same program on the same values (`accelerate launch`); the first alone writes.
"""

import os
from collections.abc import Sequence
from datetime import timedelta

import torch
from accelerate import PartialState
from accelerate.utils import broadcast, reduce
from torch import Tensor

from perdure.errors import InputError

PATIENCE = timedelta(days=7)  # the others wait while the first process makes or opens the run


def state() -> PartialState:
    """accelerate's view of the processes; made when it is first asked for."""
    if int(os.environ.get("WORLD_SIZE", "1")) <= 1:
        return PartialState()
    # accelerate by itself sees one process where there is no accelerator, unless it is told that it is to use the CPU
    alone = not torch.accelerator.is_available()
    return PartialState(cpu=alone, timeout=PATIENCE)


def count() -> int:
    """How many processes there are."""
    return state().num_processes


def number() -> int:
    """Which of them this one is."""
    return state().process_index


def first() -> bool:
    """Whether this is the process that writes."""
    return state().is_main_process


def wait() -> None:
    """Go on when all processes have come here."""
    state().wait_for_everyone()


def device(name: str = "auto") -> torch.device:
    """Return the device of a name, on which this process is to compute.

    Parameters
    ----------
    name
        As torch has it (`cpu`, `cuda`, `cuda:1`, `mps`); `auto` is the accelerator that is here, else the CPU.

    Raises
    ------
    InputError
        There is no such device here.
    """
    if name == "auto":
        return state().device or torch.device("cpu")
    try:
        chosen = torch.device(name)
        torch.empty(1, device=chosen)
    except (
        RuntimeError,
        AssertionError,
        NotImplementedError,
    ) as error:  # one for each way of having no such device
        accelerator = torch.accelerator.current_accelerator()
        names = ["auto", "cpu", *([accelerator.type] if accelerator else [])]
        raise InputError(
            f"There is no device `{name}` here. Give one of: {', '.join(names)}."
        ) from error
    return chosen


@torch.no_grad()
def add_up(values: Sequence[Tensor]) -> None:
    """Put into each tensor the sum of it over all processes."""
    if count() > 1:
        _through(values, lambda flat: reduce(flat, "sum"))


@torch.no_grad()
def as_the_first(values: Sequence[Tensor]) -> None:
    """Put into each tensor what it is in the first process."""
    if count() > 1:
        _through(values, broadcast)


def _through(values: Sequence[Tensor], exchange) -> None:
    """Exchange many tensors as one: what costs is the number of messages."""
    flat = exchange(torch.cat([value.detach().reshape(-1).double() for value in values]))
    for value, part in zip(values, flat.split([value.numel() for value in values]), strict=True):
        value.copy_(part.view_as(value))
