"""N-LoRA (Yang et al. 2024): a new branch for each task, so sparse that branches rarely overlap."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Ge
from torch import Tensor

from perdure.learning.method import PeftMethod, Tuned
from perdure.models import adapters
from perdure.models.adapters import Adapter
from perdure.models.backbone import Backbone
from perdure.models.examples import Batch


@dataclass(kw_only=True)
class NLoRA(PeftMethod):
    """Train a fresh LoRA on top of the frozen earlier ones, with an l1 penalty on ΔW.

    L = cross-entropy + sparsity · Σ over layers of ‖ΔW_t‖₁, where ΔW_t = alpha / rank ·
    B_t A_t and ‖·‖₁ is the sum of absolute entries. Sparse changes of different tasks
    rarely affect the same entry.

    Parameters
    ----------
    sparsity
        λ. The values in the authors' scripts, 0.4 to 1.8, cannot be reused: see the references.

    References
    ----------
    Yang et al., Is Parameter Collision Hindering Continual Learning in LLMs?, arXiv 2410.10179.
    The paper penalises B_t A_t. The published code multiplies the factors in the other order, and
    so penalises A_t B_t, a matrix of rank × rank (which also requires layers with as many inputs
    as outputs). Neither includes alpha / rank.
    """

    usual_rule = "sum"
    needs = frozenset({"lora"})
    lora_because = "penalises the product of LoRA's factors"
    tuned = Tuned("sparsity", 1e-6, 1e-1)

    sparsity: Annotated[float, Ge(0)] = 1e-4

    def beneath(self, earlier: Sequence[Adapter]) -> Sequence[Adapter]:
        return earlier

    def loss(self, backbone: Backbone, batch: Batch) -> Tensor:
        size = self._size(backbone)
        losses = backbone.losses(batch)
        return losses.mean() + self.sparsity * size

    def _size(self, backbone: Backbone) -> Tensor:
        """Return Σ over layers of ‖ΔW_t‖₁, a scalar."""
        factors = adapters.factors(backbone.model)
        sizes = []
        # Autocast would multiply in bfloat16, which is too coarse for entries close to zero.
        with torch.autocast(backbone.device.type, enabled=False):
            for A, B in factors.values():
                product = B @ A
                sizes.append(product.abs().sum())
            size = torch.stack(sizes).sum()
            # The penalty is on ΔW, so that the meaning of λ does not depend on alpha.
            return size * self.alpha / self.rank
