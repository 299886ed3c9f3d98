"""SD-LoRA (Wu et al. 2025): earlier branches keep their directions, and how far each goes is learned anew."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from perdure.data.task import Task
from perdure.learning.method import PeftMethod
from perdure.models import adapters
from perdure.models.backbone import Backbone


@dataclass(kw_only=True)
class SDLoRA(PeftMethod):
    """Train a fresh LoRA beside the earlier ones, of which only the magnitudes are trained on.

    ΔW = alpha / rank · (Σ_{j<t} m_j D_j + B_t A_t), where D_j = B_j A_j / ‖B_j A_j‖ is frozen, and m_j, one number for
    each layer and earlier task, goes on from where it was. The module of task t holds all of it: its rank is t times
    the usual one, and the rule `last` takes it as it is.

    References
    ----------
    Wu et al., SD-LoRA: Scalable Decoupled Low-Rank Adaptation for Class Incremental Learning, arXiv 2501.13198. There
    magnitudes begin at a constant; here at what they were, so that a task begins with the model that the last one left,
    and the new branch, whose factors carry its magnitude, has none beside. The paper's formula is used; the authors'
    code divides by ‖B_j‖ ‖A_j‖, which is at least ‖B_j A_j‖ (1.3 to 1.5 times as much in a comparison), and has one
    magnitude for each earlier task, which all layers share.
    """

    usual_rule = "last"
    needs = frozenset({"lora"})
    lora_because = "splits LoRA into directions and magnitudes"

    def begin(self, backbone: Backbone, task: Task) -> None:
        """Make a module of `rank` more, the earlier branches in its first rows, with magnitudes between A and B."""
        earlier = {
            name: (A.data, B.data) for name, (A, B) in adapters.factors(backbone.model).items()
        }
        held = next((len(A) for A, _ in earlier.values()), 0)
        self.attach(backbone, times=held // self.rank + 1)
        self._branches = [_Branches(layer, self.rank) for layer in adapters.layers(backbone.model)]
        for branches, (A, B) in zip(self._branches, earlier.values(), strict=False):
            branches.hold(A, B)

    def parameters(self, backbone: Backbone) -> list[nn.Parameter]:
        """The module, of whose first rows `update` keeps the values, and the magnitudes."""
        magnitudes = [branches.magnitudes for branches in self._branches if branches.held]
        return [*adapters.trainable(backbone.model).values(), *magnitudes]

    def trained(self, backbone: Backbone) -> int:
        """All but the earlier directions."""
        held = [b.held * (b.A.shape[1] + b.inner.weight.shape[0]) for b in self._branches]
        return sum(parameter.numel() for parameter in self.parameters(backbone)) - sum(held)

    def update(self, backbone: Backbone, step: Callable[[], None]) -> None:
        """Keep the earlier directions."""
        for branches in self._branches:
            branches.keep_still()
        step()
        for branches in self._branches:
            branches.put_back()

    def end(self, backbone: Backbone, task: Task, optimizer: Optimizer) -> None:
        """Put the magnitudes into B: what is left is a usual LoRA."""
        for branches in self._branches:
            branches.settle()


class _Branches:
    """The earlier branches in one layer's module: its first `held` rows of A and columns of B."""

    def __init__(self, layer: Any, rank: int):
        self.A, self.inner = layer.lora_A["default"].weight, layer.lora_B["default"]
        self.rank, self.held = rank, 0
        self.magnitudes = nn.Parameter(self.A.new_zeros(0))

    def hold(self, A: Tensor, B: Tensor) -> None:
        """Put earlier branches in."""
        self.held, self.before = len(A), (A, B)
        self.put_back()
        parts = [slice(i, i + self.rank) for i in range(0, self.held, self.rank)]
        self.norms = torch.stack([(B[:, part] @ A[part]).norm() for part in parts]).clamp_min(1e-12)
        self.magnitudes = nn.Parameter(self.norms.clone())
        self.hook = self.inner.register_forward_pre_hook(
            lambda module, inputs: (inputs[0] * self._scales(),)
        )

    def _scales(self) -> Tensor:
        """What acts on each row of A x: m_j / ‖B_j A_j‖, and 1 for the new branch."""
        own = self.A.new_ones(len(self.A) - self.held)
        return torch.cat([(self.magnitudes / self.norms).repeat_interleave(self.rank), own])

    def keep_still(self) -> None:
        """No gradient for the earlier directions: it would count in the norm to which all are clipped."""
        if (
            self.held and self.A.grad is not None and self.inner.weight.grad is not None
        ):  # it may be a layer of no use
            self.A.grad[: self.held] = 0
            self.inner.weight.grad[:, : self.held] = 0

    @torch.no_grad()
    def put_back(self) -> None:
        """The earlier directions as they were: weight decay has no gradient."""
        if self.held:
            self.A[: self.held], self.inner.weight[:, : self.held] = self.before

    @torch.no_grad()
    def settle(self) -> None:
        if self.held:
            self.inner.weight *= self._scales()
            self.hook.remove()
