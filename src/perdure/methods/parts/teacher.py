"""A teacher for distillation: the model with the parameters that it had earlier."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.func import functional_call

from perdure.models.backbone import Backbone, evaluating

R = TypeVar("R")


def copied(backbone: Backbone, parameters: Iterable[nn.Parameter]) -> dict[str, Tensor]:
    """Return copies of some of the backbone's parameters, for `as_teacher`.

    The teacher and the student share all other parameters, which are frozen.
    """
    chosen = {id(parameter) for parameter in parameters}
    copies = {}
    for name, parameter in backbone.named_parameters():
        if id(parameter) in chosen:
            key = f"backbone.{name}"  # its name in `_Calling`
            copies[key] = parameter.detach().clone()
    return copies


@torch.no_grad()
def as_teacher(backbone: Backbone, values: Mapping[str, Tensor], compute: Callable[[], R]) -> R:
    """Return the result of `compute`, called while the backbone has the copied values.

    The backbone is in evaluation mode meanwhile, because a teacher with dropout would be
    noisy.
    """
    with evaluating(backbone):
        return functional_call(
            _Calling(backbone),
            dict(values),
            (compute,),
            # Tasks that share a head have one parameter under several names. Tied, torch
            # would put the teacher's values back in place of the student's after the
            # call.
            tie_weights=False,
        )


class _Calling(nn.Module):
    """A module that contains the backbone and calls a function that uses it."""

    def __init__(self, backbone: Backbone):
        super().__init__()
        self.backbone = backbone

    def forward(self, compute: Callable[[], Any]) -> Any:
        return compute()
