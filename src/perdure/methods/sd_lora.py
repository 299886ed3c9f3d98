"""SD-LoRA (Wu et al. 2025): branches keep their directions; their magnitudes are retrained."""

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
    """Train a fresh LoRA together with the magnitudes, but not the directions, of earlier ones.

    ΔW = alpha / rank · (Σ_{j<t} m_j D_j + B_t A_t), where D_j = B_j A_j / ‖B_j A_j‖ is
    frozen, and m_j, one number for each layer and earlier task, is trained from its last
    value. The module of task t contains the entire sum: its rank is t times the rank of
    one branch, and the rule `last` uses the module unchanged.

    References
    ----------
    Wu et al., SD-LoRA: Scalable Decoupled Low-Rank Adaptation for Class Incremental Learning,
    arXiv 2501.13198. There magnitudes start from a constant. Here they start from their last
    values, so that a task starts with the model that the last task left. The new branch has no
    separate magnitude, because its factors include it. The paper's formula is used; the authors'
    code divides by ‖B_j‖ ‖A_j‖, which is at least ‖B_j A_j‖ (1.3 to 1.5 times as large in a
    comparison), and has one magnitude for each earlier task, which all layers share.
    """

    usual_rule = "last"
    needs = frozenset({"lora"})
    lora_because = "splits LoRA into directions and magnitudes"

    def begin(self, backbone: Backbone, task: Task) -> None:
        """Attach a module with `rank` more rows than the last one had.

        The first rows are the earlier branches.
        """
        # The last task's module is the only memory, and attaching a fresh one removes it.
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
        """Return the parameters of the module, and the magnitudes of earlier branches.

        The module includes the earlier directions, which `update` keeps from changing.
        """
        parameters = list(adapters.trainable(backbone.model).values())
        for branches in self._branches:
            if branches.earlier_rows:
                parameters.append(branches.magnitudes)
        return parameters

    def trained(self, backbone: Backbone) -> int:
        """Return the number of trained values, not counting the earlier directions."""
        numbers = 0
        for parameter in self.parameters(backbone):
            numbers += parameter.numel()
        for branches in self._branches:
            _, inputs = branches.A.shape
            outputs, _ = branches.B.shape
            numbers -= branches.earlier_rows * (inputs + outputs)
        return numbers

    def update(self, backbone: Backbone, step: Callable[[], None]) -> None:
        """Take a step that does not change the earlier directions."""
        for branches in self._branches:
            branches.keep_still()
        step()
        for branches in self._branches:
            branches.put_back()

    def end(self, backbone: Backbone, task: Task, optimizer: Optimizer) -> None:
        """Multiply the magnitudes into B, which turns the module into an ordinary LoRA."""
        for branches in self._branches:
            branches.settle()


class _Branches:
    """The branches of all tasks in the module of one layer.

    The earlier branches are the first `earlier_rows` rows of A and columns of B, with
    `rank` rows and columns for each task.
    """

    def __init__(self, inner: nn.Linear, outer: nn.Linear, rank: int):
        self.A = inner.weight
        self.B = outer.weight
        self.outer = outer
        self.rank = rank
        self.earlier_rows = 0
        self.magnitudes = nn.Parameter(self.A.new_zeros(0))

    def hold(self, A: Tensor, B: Tensor) -> None:
        """Insert the earlier branches, and apply their magnitudes between A and B."""
        self.earlier_rows = len(A)
        self.earlier = (A, B)
        self.put_back()
        norms = []
        # A row of A belongs to a column of B; `rank` such pairs are the branch of one task.
        for start in range(0, len(A), self.rank):
            branch = slice(start, start + self.rank)
            product = B[:, branch] @ A[branch]
            norms.append(product.norm())
        # An untrained branch is zero, and has no direction.
        self.norms = torch.stack(norms).clamp_min(1e-12)
        # m_j = ‖B_j A_j‖: at first, the model is the one that the last task left.
        self.magnitudes = nn.Parameter(self.norms.clone())
        # Between A and B, the scales act on few numbers per token and leave the factors unchanged.
        self.hook = self.outer.register_forward_pre_hook(
            lambda module, inputs: (inputs[0] * self._scales(),),
        )

    def _scales(self) -> Tensor:
        """Return the factor for each row of A x: m_j / ‖B_j A_j‖, or 1 for the new branch."""
        scales = self.magnitudes / self.norms
        earlier = scales.repeat_interleave(self.rank)
        new = self.A.new_ones(len(self.A) - self.earlier_rows)
        return torch.cat([earlier, new])

    def keep_still(self) -> None:
        """Set the gradients of the earlier directions to zero.

        `put_back` alone is not enough, because these gradients would count towards the
        gradient norm used for clipping.
        """
        if not self.earlier_rows:
            return
        # No pass has used this layer: the answer may not depend on it.
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
        """Multiply the scales into B, and remove the hook that applies them."""
        if self.earlier_rows:
            self.B *= self._scales()
            self.hook.remove()
