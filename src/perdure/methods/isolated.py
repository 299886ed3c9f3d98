"""Parameter isolation (Zeng, Li & Ayesh 2025): one module per task, the first stage of PIC."""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from perdure.data.task import Task
from perdure.errors import InputError
from perdure.learning.method import PeftMethod
from perdure.models import adapters
from perdure.models.backbone import Backbone


@dataclass(kw_only=True)
class Isolated(PeftMethod):
    """Train one PEFT module per task on the frozen backbone; earlier modules are never changed.

    Phi_t = argmin over Phi of L(D_t; Theta_pre, Phi), starting from Phi_pre or from
    Phi_{t-1}. No old data is stored.

    Parameters
    ----------
    start
        `fresh`: every task starts from the same initial module Phi_pre. `previous`: every
        task starts from the trained module of the last task (the paper's choice, which
        trains faster and passes knowledge on). `orthogonal`: every task starts from the
        last task's B and an orthonormal basis of the rows of its A (as in SLAO, for the
        rule `slao`; LoRA only).

    References
    ----------
    Zeng, Li & Ayesh, Neural Networks Remember More: The Power of Parameter Isolation and
    Combination, arXiv 2502.10966. Implemented from its abstract and introduction, because the
    paper's code and hyperparameters are not public. SLAO: Qiao & Mahdavi, Merge before Forget,
    arXiv 2512.23017.
    """

    start: Literal["fresh", "previous", "orthogonal"] = "fresh"

    def __post_init__(self):
        super().__post_init__()
        if self.start == "orthogonal" and self.peft != "lora":
            raise InputError(
                "`start: orthogonal` computes a basis from LoRA's A, so it needs `peft: lora`. Or "
                "use `start: previous`."
            )

    @property
    def isolates(self) -> bool:
        # A task that starts from the last task's module carries traces of all earlier tasks.
        return self.start == "fresh"

    def begin(self, backbone: Backbone, task: Task) -> None:
        if self.start == "fresh":
            self.attach(backbone)
            return
        goes_on = adapters.attached(backbone.model)
        self.go_on(backbone)
        if self.start == "orthogonal" and goes_on:
            for A, _ in adapters.factors(backbone.model).values():
                A.data = _orthonormal(A.data)


def _orthonormal(A: Float[Tensor, "rank in"]) -> Float[Tensor, "rank in"]:
    """Return an orthonormal basis of the row space of A, with signs that match the rows."""
    Q, R = torch.linalg.qr(A.double().T)
    # The decomposition is unique except for signs; these leave an orthonormal A unchanged.
    signs = torch.where(R.diagonal() < 0, -1.0, 1.0).to(Q)
    return (Q * signs).T.to(A)
