"""O-LoRA (Wang et al. 2023): a new branch for each task, kept orthogonal to earlier branches."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Ge
from jaxtyping import Float
from torch import Tensor

from perdure.data.task import Task
from perdure.learning.method import PeftMethod, Tuned
from perdure.models import adapters
from perdure.models.adapters import Adapter
from perdure.models.backbone import Backbone
from perdure.models.examples import Batch


@dataclass(kw_only=True)
class OLoRA(PeftMethod):
    """Train a fresh LoRA on top of the frozen earlier ones, with its A kept orthogonal to theirs.

    L = cross-entropy + orthogonality · Σ over layers and j < t of ‖A_j A_tᵀ‖₁ + decay · Σ
    over layers of (‖A_t‖ + ‖B_t‖), where ‖·‖₁ is the sum of absolute entries. Fresh
    modules are identical for all tasks of a run, so the penalty starts at its maximum.

    Parameters
    ----------
    orthogonality
        λ₁: 0.5 in the paper, but 5 for the later tasks of its long streams.
    decay
        λ₂: 0 to 0.3 in the official scripts.

    References
    ----------
    Wang et al., Orthogonal Subspace Learning for Language Model Continual Learning, arXiv
    2310.14152.
    """

    usual_rule = "sum"
    needs = frozenset({"lora"})
    lora_because = "compares LoRA's input directions"
    tuned = Tuned("orthogonality", 1e-3, 1e1)

    orthogonality: Annotated[float, Ge(0)] = 0.5
    decay: Annotated[float, Ge(0)] = 0.0

    def beneath(self, earlier: Sequence[Adapter]) -> Sequence[Adapter]:
        self._earlier = earlier
        return earlier

    def begin(self, backbone: Backbone, task: Task) -> None:
        """Attach the new branch, and stack the matrices A of earlier tasks to speed up `overlap`.

        The A_j of a layer are concatenated along their rows. Layers with the same input
        width are then stacked, so that one batched product serves all of them.
        """
        self.attach(backbone)
        self._stacks: list[tuple[list[str], Float[Tensor, "layers directions in"]]] = []
        if not self._earlier:  # the first task has nothing to be orthogonal to
            return
        factors = adapters.factors(backbone.model)
        by_width: dict[int, list[str]] = {}
        for name, (A, _) in factors.items():
            width = A.shape[1]
            by_width.setdefault(width, []).append(name)
        for names in by_width.values():
            directions = []
            for name in names:
                directions.append(self._directions(name))
            stack = torch.stack(directions)
            # Adapters are on the CPU; the stack is moved once, to the device of the loss.
            stack = stack.to(backbone.device)
            self._stacks.append((names, stack))

    def loss(self, backbone: Backbone, batch: Batch) -> Tensor:
        loss = backbone.losses(batch).mean()
        if self._stacks and self.orthogonality:
            # Autocast would multiply in bfloat16, which is too coarse for overlaps close to zero.
            with torch.autocast(backbone.device.type, enabled=False):
                overlap = self.overlap(backbone)
                loss = loss + self.orthogonality * overlap
        if self.decay:
            norms = []
            # Not squared, as in the official scripts.
            for A, B in adapters.factors(backbone.model).values():
                norms.append(A.norm())
                norms.append(B.norm())
            size = torch.stack(norms).sum()
            loss = loss + self.decay * size
        return loss

    def overlap(self, backbone: Backbone) -> Tensor:
        """Return Σ over layers and earlier tasks of ‖A_j A_tᵀ‖₁, a scalar."""
        factors = adapters.factors(backbone.model)
        sums = []
        for names, earlier in self._stacks:
            new = []
            for name in names:
                A, _ = factors[name]
                new.append(A)
            # layers × directions of earlier tasks × directions of the new one
            products = earlier @ torch.stack(new).mT
            sums.append(products.abs().sum())
        return torch.stack(sums).sum()

    def _directions(self, layer: str) -> Float[Tensor, "directions in"]:
        """Return the rows of A from all earlier tasks in a layer."""
        name = f"{layer}.lora_A.weight"
        return torch.cat([adapter.parameters[name] for adapter in self._earlier])
