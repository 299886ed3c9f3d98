"""Elastic weight consolidation (Kirkpatrick et al. 2017): one module, held back where earlier tasks need it."""

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from annotated_types import Ge, Gt, Le
from torch import Tensor

from perdure import adapters
from perdure.backbone import Backbone, Batch
from perdure.fisher import Labels, fisher
from perdure.method import Method, local_cross_entropy
from perdure.stream import Task


@dataclass(kw_only=True)
class EWC(Method):
    """Train the same PEFT module on one task after the other, with a penalty on what mattered to earlier ones.

    L = cross-entropy + strength / 2 · Σ_i F_i (θ_i − θ*_i)², over the module's parameters; a task's head is its own
    and is not held. F is the diagonal of the Fisher information, from gradients of each example by itself.

    Parameters
    ----------
    strength
        λ. It goes with the size of F, and wants tuning.
    memory
        `offline`: one penalty for each task, as published. Their sum is one again, with ΣF and the mean of the θ* that
        F weighs, so that nothing grows with the tasks. `online`: F ← decay · F + F_t, around the last task's θ*.
    decay
        γ of `online`.
    labels
        Of F: `true` (all labels, weighted by p(y | x): a backward pass for each), `sampled` from p(y | x), or
        `empirical` (the right ones).

    References
    ----------
    Kirkpatrick et al., Overcoming catastrophic forgetting in neural networks, arXiv 1612.00796; online: Schwarz et al.,
    Progress & Compress, arXiv 1805.06370.
    """

    usual_rule = "last"

    strength: Annotated[float, Ge(0)] = 1000.0
    memory: Literal["offline", "online"] = "offline"
    decay: Annotated[float, Gt(0), Le(1)] = 0.9
    labels: Labels = "true"

    def begin(self, backbone: Backbone, task: Task) -> None:
        if not adapters.attached(backbone.model):
            self.attach(backbone)

    def loss(self, backbone: Backbone, batch: Batch) -> Tensor:
        loss = local_cross_entropy(backbone, batch)
        return loss + self.strength / 2 * self._penalty(backbone) if self.state else loss

    def _penalty(self, backbone: Backbone) -> Tensor:
        """Σ F (θ − θ*)²."""
        terms = [
            (self.state[f"fisher/{name}"].to(value) * (value - self.state[f"anchor/{name}"].to(value)).square()).sum()
            for name, value in _parameters(backbone).items()
        ]
        return torch.stack(terms).sum()

    def end(self, backbone: Backbone, task: Task) -> None:
        """Add the task's F and θ* to what is remembered."""
        new = fisher(backbone, backbone.encode(task.rows("train")), task.name, self.labels)
        for name, value in _parameters(backbone).items():
            now, F = value.detach().cpu().clone(), new[name]
            old, anchor = self.state.get(f"fisher/{name}", torch.zeros_like(F)), self.state.get(f"anchor/{name}", now)
            if self.memory == "online":
                F, anchor = self.decay * old + F, now
            else:
                share = torch.where(old + F > 0, F / (old + F), 1.0)
                F, anchor = old + F, anchor + share * (now - anchor)
            self.state[f"fisher/{name}"], self.state[f"anchor/{name}"] = F, anchor


def _parameters(backbone: Backbone) -> dict[str, Tensor]:
    """The module's parameters by name, as `fisher` calls them."""
    found = adapters.linears(backbone.model)
    return {f"{name}.{key}": value for name, layer in found.items() for key, value in layer.named_parameters()}
