"""Incremental LoRA: a new branch for each task, on top of the frozen branches of earlier tasks."""

from collections.abc import Sequence
from dataclasses import dataclass

from perdure.errors import InputError
from perdure.learning.method import PeftMethod
from perdure.models.adapters import Adapter


@dataclass(kw_only=True)
class IncLoRA(PeftMethod):
    """Train a fresh LoRA on top of the frozen LoRAs of all earlier tasks; the model is the sum.

    W = W0 + Σ_{j<t} ΔW_j + ΔW_t. O-LoRA and N-LoRA add a penalty to this method, and
    their papers use it as a baseline.

    References
    ----------
    Wang et al., Orthogonal Subspace Learning for Language Model Continual Learning, arXiv
    2310.14152 (as a baseline).
    """

    usual_rule = "sum"

    def __post_init__(self):
        if self.peft == "bottleneck":
            raise InputError(
                "`inc_lora` adds up changes of weights, and a bottleneck has none: "
                "use `peft: lora`."
            )

    def beneath(self, earlier: Sequence[Adapter]) -> Sequence[Adapter]:
        return earlier
