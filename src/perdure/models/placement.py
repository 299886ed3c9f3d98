"""Sharded models: each process stores a part of the rows of every frozen weight.

The weights are sharded by PyTorch's FSDP2. While a transformer block computes, all processes
have its complete weights. Trained modules and heads are small, and are added after the model
was sharded, so that they are complete in every process. No other file knows about sharded
tensors.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor

from perdure.errors import InputError
from perdure.models import pretrained, quantised

PART = "run_part"
"""The name of the method that runs a part of a sharded model."""


def shard(model: nn.Module, device: torch.device, *, processes: int, reshard: bool = True) -> None:
    """Shard the frozen weights of a model between all processes, in place.

    Each block is moved to the device separately, so the complete model need not fit there.

    Parameters
    ----------
    device
        The device on which this process computes.
    reshard
        Free a block's complete weights after its forward pass, and collect them again for
        the backward pass. Otherwise they stay until the backward pass.

    Raises
    ------
    InputError
        The model's weights are in 4 bits.
    """
    if is_sharded(model):
        return
    if quantised.is_quantised(model):
        raise InputError(
            f"`sharding: fsdp` does not shard weights in 4 bits (`dtype: {quantised.NF4}`). Use "
            "`dtype: bfloat16`, or leave the sharding out."
        )
    mesh = init_device_mesh(device.type, (processes,))
    for module in list(model.modules()):
        if pretrained.is_block(module):
            fully_shard(module, mesh=mesh, reshard_after_forward=reshard)
    # All that is outside of the blocks, such as the embeddings. It is freed as well, so that
    # a model at rest takes the same memory whatever it has computed before.
    fully_shard(model, mesh=mesh, reshard_after_forward=True)
    model.run_part = lambda part, inputs: part(**inputs)  # pyright: ignore[reportArgumentType]
    register_fsdp_forward_method(model, PART)


def is_sharded(model: nn.Module) -> bool:
    """Return True if the weights of a model are sharded."""
    return isinstance(model, FSDPModule)


def run(model: Any, part: nn.Module, inputs: Mapping[str, Any]) -> Any:
    """Return the output of a part of a model, such as its encoder.

    FSDP collects the weights outside of the blocks only if the model is called as a whole.
    """
    if part is model or not is_sharded(model):
        return part(**inputs)
    return model.run_part(part, inputs)


# -- weights of a model that may be sharded


def stored(weight: Tensor) -> Tensor:
    """Return the rows of a weight that this process stores, to be restored with `put`."""
    if not isinstance(weight, DTensor):
        return weight.data
    # A copy, because `put` overwrites the rows of a sharded weight in place.
    return weight.to_local().detach().clone()


def put(weight: Tensor, rows: Tensor) -> None:
    """Replace the rows of a weight that this process stores."""
    if not isinstance(weight, DTensor):
        # Assign to `data`, so that references to the parameter stay valid.
        weight.data = rows
        return
    # In place, because FSDP collects the rows from this memory.
    weight.to_local().detach().copy_(rows)


def like(value: Tensor, weight: Tensor) -> Tensor:
    """Return the rows of a tensor that belong to the rows of a weight that this process stores."""
    if not isinstance(weight, DTensor):
        return value
    mesh = weight.device_mesh
    # Like `torch.chunk`, which FSDP uses: the last processes may get fewer rows, or none.
    size = -(-len(value) // mesh.size())
    first = mesh.get_local_rank() * size
    return value[first : first + size]


def whole(weight: Tensor) -> Tensor:
    """Return a complete weight, collected from all processes, all of which must call this."""
    return weight.full_tensor() if isinstance(weight, DTensor) else weight
