"""Nearest class mean on the frozen backbone: the baseline that costs one pass over the data, and forgets nothing."""

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from annotated_types import Gt
from torch.optim import Optimizer

from perdure.data.task import Task
from perdure.methods.parts.frozen import FrozenMethod, check_present, statistics_of
from perdure.models.backbone import Backbone


@dataclass(kw_only=True)
class NCM(FrozenMethod):
    """Answer with the class whose mean feature μ is nearest; nothing is trained.

    Logits are xᵀμ / ‖μ‖ (`cosine`; the length of x changes no order) or xᵀμ − ‖μ‖² / 2 (`euclidean`), divided by the
    temperature. A task's head depends on no other task.

    Parameters
    ----------
    metric
        What is near.
    temperature
        Of the probabilities, which the task posterior weighs; it changes no answer while the task is given.

    References
    ----------
    Mensink et al., Distance-based image classification, TPAMI 2013; on pre-trained transformers: Zhou et al.
    (SimpleCIL), arXiv 2303.07338; as the test of what training adds: Kim & Han (Exploit), arXiv 2304.01663.
    """

    metric: Literal["cosine", "euclidean"] = "cosine"
    temperature: Annotated[float, Gt(0)] = 0.1

    @property
    def isolates(self) -> bool:
        return True

    def end(self, backbone: Backbone, task: Task, optimizer: Optimizer) -> None:
        """Put the class means in place as the head."""
        found = statistics_of(backbone, task)
        check_present(found, task)
        means = found.sums / found.counts[:, None]
        norms = means.norm(dim=1)
        cosine = self.metric == "cosine"
        weight = means / norms[:, None].clamp_min(1e-12) if cosine else means
        bias = torch.zeros(len(means)) if cosine else -0.5 * norms.square()
        head = {"weight": weight / self.temperature, "bias": bias / self.temperature}
        backbone.put(task.name, {name: value.float() for name, value in head.items()})
