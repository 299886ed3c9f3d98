"""Distributed training on accelerate: processes, devices, communication and sharding.

All processes run the same program with the same data (`accelerate launch` or `torchrun`);
only the first process writes files.
"""

import os
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, FullyShardedDataParallelPlugin, PartialState
from accelerate.state import AcceleratorState
from accelerate.tracking import get_available_trackers
from accelerate.utils import broadcast, reduce
from torch import Tensor
from torch.distributed.fsdp import CPUOffloadPolicy

from perdure.errors import InputError
from perdure.learning.training import Training
from perdure.models import placement
from perdure.models.backbone import Backbone

PATIENCE = timedelta(days=7)
"""The timeout for communication between processes.

While the first process creates or opens the run, the others wait, and torch's default
timeout of ten to thirty minutes could kill them.
"""


def state() -> PartialState:
    """Return accelerate's `PartialState` of this process; the first call initialises it."""
    if int(os.environ.get("WORLD_SIZE", "1")) <= 1:
        return PartialState()
    # On a machine without an accelerator, accelerate assumes a single process unless it
    # is told to use the CPU.
    alone = not torch.accelerator.is_available()
    return PartialState(cpu=alone, timeout=PATIENCE)


def count() -> int:
    """Return the number of processes."""
    return state().num_processes


def number() -> int:
    """Return the index of this process, counted from 0."""
    return state().process_index


def first() -> bool:
    """Return True in the first process, which is the only one that writes files."""
    return state().is_main_process


def wait() -> None:
    """Wait until all processes have reached this point."""
    state().wait_for_everyone()


def device(name: str = "auto") -> torch.device:
    """Return the device on which this process computes.

    Parameters
    ----------
    name
        The name of a torch device (`cpu`, `cuda`, `cuda:1`, `mps`). `auto` is the
        accelerator of this machine, or the CPU if it has none.

    Raises
    ------
    InputError
        This machine has no such device.
    """
    # With several processes, accelerate has assigned a device to each.
    if name == "auto":
        return state().device or torch.device("cpu")
    try:
        chosen = torch.device(name)
        torch.empty(1, device=chosen)  # a valid name does not mean that the device exists
    # Torch raises one of these, depending on why the device is missing: an unknown name
    # or number, a build without its backend, or a backend that is not implemented.
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        names = ["auto", "cpu"]
        accelerator = torch.accelerator.current_accelerator()
        if accelerator:
            names.append(accelerator.type)
        raise InputError(
            f"There is no device `{name}` here. Give one of: {', '.join(names)}."
        ) from error
    return chosen


def accelerator(training: Training, folder: Path | None) -> Accelerator:
    """Return accelerate's `Accelerator`, which provides mixed precision and trackers.

    Parameters
    ----------
    folder
        The folder that trackers write to.

    Raises
    ------
    InputError
        A tracker is not installed.
    """
    known = [str(getattr(tracker, "value", tracker)) for tracker in get_available_trackers()]
    for name in training.trackers:
        if name not in known:
            raise InputError(
                f"No tracker `{name}` is installed: accelerate finds {known or 'none'} here."
            )
    precision = "bf16" if training.bf16 else "no"
    # accelerate would create the process group with torch's timeout: create it with ours first.
    state()
    # accelerate's state is global to the Python process, and rejects any precision but
    # that of the first run.
    if AcceleratorState._shared_state and AcceleratorState().mixed_precision != precision:
        AcceleratorState._reset_state()
    made = Accelerator(
        mixed_precision=precision,
        log_with=list(training.trackers) or None,  # pyright: ignore
        project_dir=folder,
    )
    made.init_trackers("perdure")
    return made


# -- the model on its devices


def shards(training: Training) -> bool:
    """Return True if the weights are to be sharded: by the settings, or by `accelerate config`."""
    return training.sharding == "fsdp" or _launched_with("FSDP")


def place(backbone: Backbone, training: Training) -> None:
    """Move a backbone to the device of this process, or shard it between all processes.

    A single process has nothing to share, so that it can continue a run of several.

    Raises
    ------
    InputError
        accelerate was told to use DeepSpeed or to keep the weights in the CPU's memory, or
        the model cannot be sharded.
    """
    if _launched_with("DEEPSPEED"):
        raise InputError(
            "perdure does not train with DeepSpeed: FSDP shards the same weights. Run `accelerate "
            "config` again and choose FSDP, or set `training: {sharding: fsdp}`."
        )
    if not shards(training) or count() == 1:
        if not placement.is_sharded(backbone.model):
            backbone.to(device())
        return
    # The plugin reads what `accelerate config` has asked.
    plugin = FullyShardedDataParallelPlugin(fsdp_version=2)
    if isinstance(plugin.cpu_offload, CPUOffloadPolicy):
        raise InputError(
            "perdure does not keep sharded weights in the CPU's memory. Set "
            "`fsdp_offload_params: false` in accelerate's configuration, and use more processes."
        )
    placement.shard(
        backbone.model,
        device(),
        processes=count(),
        reshard=bool(plugin.reshard_after_forward),
    )


def _launched_with(engine: str) -> bool:
    """Return True if `accelerate launch` was told to use an engine (`FSDP` or `DEEPSPEED`)."""
    return os.environ.get(f"ACCELERATE_USE_{engine}", "false").lower() == "true"


# -- communication


@torch.no_grad()
def add_up(values: Sequence[Tensor]) -> None:
    """Replace each tensor with its sum over all processes, in place."""
    if count() > 1:
        _through(values, lambda flat: reduce(flat, "sum"))


@torch.no_grad()
def as_the_first(values: Sequence[Tensor]) -> None:
    """Replace each tensor with its value in the first process, in place."""
    if count() > 1:
        _through(values, broadcast)


def _through(values: Sequence[Tensor], exchange: Callable[[Tensor], Any]) -> None:
    """Exchange several tensors in one message, because the cost depends on the number of messages.

    The tensors are sent in double precision, which represents all of their values
    exactly. accelerate's functions are typed for nested structures; for a tensor they
    return a tensor.
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
