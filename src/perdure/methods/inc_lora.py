"""Incremental LoRA: a new branch for each task, on top of the earlier ones, which stay as they are."""

from collections.abc import Sequence
from dataclasses import dataclass

from perdure.errors import InputError
from perdure.learning.method import PeftMethod
from perdure.models.adapters import Adapter


@dataclass(kw_only=True)
class IncLoRA(PeftMethod):
    """Train a fresh LoRA on top of those of all earlier tasks, which are frozen; the model is the sum.

    W = W0 + Σ_{j<t} ΔW_j + ΔW_t. What O-LoRA and N-LoRA add a penalty to, and the baseline of their papers.

    References
    ----------
    Wang et al., Orthogonal Subspace Learning for Language Model Continual Learning, arXiv 2310.14152 (as baseline).
    """

    usual_rule = "sum"

    def __post_init__(self):
        if self.peft == "bottleneck":
            raise InputError(
                "`inc_lora` adds changes of weights up, and a bottleneck has none: take `peft: lora`."
            )

    def beneath(self, earlier: Sequence[Adapter]) -> Sequence[Adapter]:
        return earlier
