"""SD-LoRA (Wu et al. 2025): branches keep their directions, and their magnitudes are relearned."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from perdure.data.task import Task
from perdure.learning.method import PeftMethod
from perdure.models import adapters
from perdure.models.backbone import Backbone


@dataclass(kw_only=True)
class SDLoRA(PeftMethod):
    """Train a fresh LoRA beside the earlier ones, whose magnitudes alone continue to be trained.

    ΔW = alpha / rank · (Σ_{j<t} m_j D_j + B_t A_t), where D_j = B_j A_j / ‖B_j A_j‖ is
    frozen, and m_j, one number for each layer and earlier task, is trained from its last
    value. The module of task t holds the whole sum: its rank is t times the usual one, and
    the rule `last` takes it as it is.

    References
    ----------
    Wu et al., SD-LoRA: Scalable Decoupled Low-Rank Adaptation for Class Incremental Learning,
    arXiv 2501.13198. There magnitudes begin at a constant; here at their last values, so that
    a task begins with the model that the last one left, and the new branch, whose factors
    carry its magnitude, has no other. The paper's formula is used; the authors' code divides
    by ‖B_j‖ ‖A_j‖, which is at least ‖B_j A_j‖ (1.3 to 1.5 times as much in a comparison),
    and has one magnitude for each earlier task, which all layers share.
    """

    usual_rule = "last"
    needs = frozenset({"lora"})
    lora_because = "splits LoRA into directions and magnitudes"

    def begin(self, backbone: Backbone, task: Task) -> None:
        """Attach a module with `rank` more rows than before; the first rows hold the earlier
        branches.
        """
        # The last task's module is the only memory: attaching a fresh one takes it out.
        earlier = []
        for A, B in adapters.factors(backbone.model).values():
            earlier.append((A.data, B.data))
        tasks = 0
        if earlier:
            A, _ = earlier[0]
            tasks = len(A) // self.rank
        self.attach(backbone, times=tasks + 1)

        linears = adapters.linears(backbone.model)
        self._branches: list[_Branches] = []
        for name in adapters.factors(backbone.model):
            branches = _Branches(
                linears[f"{name}.lora_A.default"],
                linears[f"{name}.lora_B.default"],
                self.rank,
            )
            self._branches.append(branches)
        if earlier:  # (before the first task there are none)
            for branches, (A, B) in zip(self._branches, earlier, strict=True):
                branches.hold(A, B)

    def parameters(self, backbone: Backbone) -> list[nn.Parameter]:
        """Return the module, whose earlier directions `update` keeps, and the magnitudes."""
        parameters = list(adapters.trainable(backbone.model).values())
        for branches in self._branches:
            if branches.earlier_rows:
                parameters.append(branches.magnitudes)
        return parameters

    def trained(self, backbone: Backbone) -> int:
        """Return the number of trained values: all but the earlier directions."""
        numbers = 0
        for parameter in self.parameters(backbone):
            numbers += parameter.numel()
        for branches in self._branches:
            _, inputs = branches.A.shape
            outputs, _ = branches.B.shape
            numbers -= branches.earlier_rows * (inputs + outputs)
        return numbers

    def update(self, backbone: Backbone, step: Callable[[], None]) -> None:
        """Make a step that leaves the earlier directions as they are."""
        for branches in self._branches:
            branches.keep_still()
        step()
        for branches in self._branches:
            branches.put_back()

    def end(self, backbone: Backbone, task: Task, optimizer: Optimizer) -> None:
        """Multiply the magnitudes into B, which leaves an ordinary LoRA."""
        for branches in self._branches:
            branches.settle()


class _Branches:
    """The branches in one layer's module.

    The earlier ones are the first `earlier_rows` rows of A and columns of B, `rank` for each
    task.
    """

    def __init__(self, inner: nn.Linear, outer: nn.Linear, rank: int):
        self.A = inner.weight
        self.B = outer.weight
        self.outer = outer
        self.rank = rank
        self.earlier_rows = 0
        self.magnitudes = nn.Parameter(self.A.new_zeros(0))

    def hold(self, A: Tensor, B: Tensor) -> None:
        """Put the factors of the earlier branches in, and their magnitudes between A and B."""
        self.earlier_rows = len(A)
        self.earlier = (A, B)
        self.put_back()
        norms = []
        # A row of A and a column of B belong together; `rank` of them are a task's branch.
        for start in range(0, len(A), self.rank):
            branch = slice(start, start + self.rank)
            product = B[:, branch] @ A[branch]
            norms.append(product.norm())
        # An untrained branch is zero, and has no direction.
        self.norms = torch.stack(norms).clamp_min(1e-12)
        # m_j = ‖B_j A_j‖: the model is at first what the last task left.
        self.magnitudes = nn.Parameter(self.norms.clone())
        # Between A and B the scales act on `rank` numbers of a token, and leave the factors alone.
        self.hook = self.outer.register_forward_pre_hook(
            lambda module, inputs: (inputs[0] * self._scales(),),
        )

    def _scales(self) -> Tensor:
        """Return the factor on each row of A x: m_j / ‖B_j A_j‖, and 1 for the new branch."""
        scales = self.magnitudes / self.norms
        earlier = scales.repeat_interleave(self.rank)
        new = self.A.new_ones(len(self.A) - self.earlier_rows)
        return torch.cat([earlier, new])

    def keep_still(self) -> None:
        """Remove the gradients of the earlier directions.

        `put_back` alone is not enough, because they would count towards the norm that gradients are
        clipped by.
        """
        if not self.earlier_rows:
            return
        # No pass has used this layer: it may be one that does not reach the answer.
        if self.A.grad is None or self.B.grad is None:
            return
        rows = self.earlier_rows
        self.A.grad[:rows] = 0
        self.B.grad[:, :rows] = 0

    @torch.no_grad()
    def put_back(self) -> None:
        """Restore the earlier directions, which weight decay changes without a gradient."""
        if not self.earlier_rows:
            return
        A, B = self.earlier
        rows = self.earlier_rows
        self.A[:rows] = A
        self.B[:, :rows] = B

    @torch.no_grad()
    def settle(self) -> None:
        """Multiply the scales into B, and take the hook that applied them out."""
        if self.earlier_rows:
            self.B *= self._scales()
            self.hook.remove()
