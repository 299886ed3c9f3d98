"""Nearest class mean on the frozen backbone: one pass over the data, and nothing to forget."""

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from annotated_types import Gt

from perdure.data.task import Task
from perdure.methods.parts.frozen import FrozenMethod, check_present, features_of, statistics_of
from perdure.models import heads
from perdure.models.backbone import Backbone


@dataclass(kw_only=True)
class NCM(FrozenMethod):
    """Answer with the class whose mean feature μ is closest; nothing is trained.

    The logits are xᵀμ / ‖μ‖ (`cosine`; the length of x does not change the order of the
    classes) or xᵀμ − ‖μ‖² / 2 (`euclidean`), divided by the temperature. The head of a
    task does not depend on other tasks.

    Parameters
    ----------
    metric
        The similarity measure.
    temperature
        The temperature of the class probabilities, which are weighted by the task
        posterior. It does not change the answers if the task is given.
    normalise
        Scale each feature vector to unit length before the means are computed, and x as well.

    References
    ----------
    Mensink et al., Distance-based image classification, TPAMI 2013; on pre-trained
    transformers: Zhou et al. (SimpleCIL), arXiv 2303.07338; as a baseline that shows how much
    training adds: Kim & Han (Exploit), arXiv 2304.01663.
    """

    metric: Literal["cosine", "euclidean"] = "cosine"
    temperature: Annotated[float, Gt(0)] = 0.1
    normalise: bool = False

    @property
    def isolates(self) -> bool:
        # Features that are adapted to the first task depend on it.
        return self.adapt is None

    def compute_heads(self, backbone: Backbone, task: Task) -> None:
        """Compute the head of the task from the class means."""
        features = features_of(backbone, task, normalise=self.normalise)
        statistics = statistics_of(backbone, task, features)
        check_present(statistics, task)
        means = statistics.sums / statistics.counts[:, None]
        norms = means.norm(dim=1)
        if self.metric == "cosine":
            # A mean of zero has no direction: its logit is then 0, not 0 / 0.
            weight = means / norms[:, None].clamp_min(1e-12)
            bias = torch.zeros(len(means))
        else:
            # ‖x − μ‖² without ‖x‖², which is the same for all classes, and times −1/2.
            weight = means
            bias = -0.5 * norms.square()
        head = {
            "weight": (weight / self.temperature).float(),
            "bias": (bias / self.temperature).float(),
        }
        if self.normalise:
            head |= heads.UNIT_NORM
        backbone.put(task.name, head)
