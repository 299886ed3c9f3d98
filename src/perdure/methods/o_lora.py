"""O-LoRA (Wang et al. 2023): a new branch for each task, whose input directions are kept orthogonal to earlier ones."""

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
    """Train a fresh LoRA on top of the frozen earlier ones, with a penalty on the overlap of its A with theirs.

    L = cross-entropy + orthogonality · Σ over layers and j < t of ‖A_j A_tᵀ‖₁ + decay · Σ (‖A_t‖ + ‖B_t‖), where ‖·‖₁
    is the sum of absolute entries. The earlier A_j of a layer are stacked, so that one product gives all of it. Fresh
    modules are equal for every task of a run, so that the penalty begins at its greatest.

    Parameters
    ----------
    orthogonality
        λ₁: 0.5 in the paper, and 5 late in its long streams.
    decay
        λ₂: 0 to 0.3 in the official scripts.

    References
    ----------
    Wang et al., Orthogonal Subspace Learning for Language Model Continual Learning, arXiv 2310.14152.
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
        """Stack the earlier tasks' A, layers of the same input width together."""
        self.attach(backbone)
        self._stacks: list[tuple[list[str], Float[Tensor, "layers directions in"]]] = []
        by_width: dict[int, list[str]] = {}
        for name, (A, _) in adapters.factors(backbone.model).items():
            by_width.setdefault(A.shape[1], []).append(name)
        for names in by_width.values() if self._earlier else ():
            stacked = torch.stack(
                [torch.cat([_A(adapter, name) for adapter in self._earlier]) for name in names]
            )
            self._stacks.append((names, stacked.to(backbone.device)))

    def loss(self, backbone: Backbone, batch: Batch) -> Tensor:
        loss = backbone.losses(batch).mean()
        if self._stacks and self.orthogonality:
            with torch.autocast(backbone.device.type, enabled=False):
                loss = loss + self.orthogonality * self.overlap(backbone)
        if self.decay:
            new = adapters.factors(backbone.model).values()
            loss = (
                loss
                + self.decay * torch.stack([part.norm() for pair in new for part in pair]).sum()
            )
        return loss

    def overlap(self, backbone: Backbone) -> Tensor:
        """Σ over layers and earlier tasks of ‖A_j A_tᵀ‖₁, a scalar."""
        new = adapters.factors(backbone.model)
        products = [
            old @ torch.stack([new[name][0] for name in names]).mT for names, old in self._stacks
        ]
        return torch.stack([product.abs().sum() for product in products]).sum()


def _A(adapter: Adapter, layer: str) -> Float[Tensor, "rank in"]:
    return adapter.parameters[f"{layer}.lora_A.weight"]
