"""Parameter isolation (Zeng, Li & Ayesh 2025): one module per task, the first stage of PIC."""

from dataclasses import dataclass
from typing import Literal

from perdure.data.task import Task
from perdure.learning.method import PeftMethod
from perdure.models.backbone import Backbone


@dataclass(kw_only=True)
class Isolated(PeftMethod):
    """Train one PEFT module per task on the frozen backbone; earlier modules are never touched.

    Phi_t = argmin over Phi of L(D_t; Theta_pre, Phi), from Phi_pre or from Phi_{t-1}; no old
    data is kept.

    Parameters
    ----------
    start
        `fresh`: every task starts from the same initial module Phi_pre; `previous`: from the last
        task's tuned module (the paper's choice: faster to train, and knowledge is passed on).

    References
    ----------
    Zeng, Li & Ayesh, Neural Networks Remember More: The Power of Parameter Isolation and
    Combination, arXiv 2502.10966. Implemented from its abstract and opening: the paper's own
    code and hyper-parameters are not public.
    """

    start: Literal["fresh", "previous"] = "fresh"

    @property
    def isolates(self) -> bool:
        # A task that starts from the last one's module carries traces of all before it.
        return self.start == "fresh"

    def begin(self, backbone: Backbone, task: Task) -> None:
        if self.start == "fresh":
            self.attach(backbone)
        else:
            self.go_on(backbone)
