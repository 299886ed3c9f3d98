"""A method with an optimizer of its own, which also moves the weights around each loss:
for tests.
"""

import contextlib
from dataclasses import dataclass

import torch

from perdure import PeftMethod
from perdure.models import adapters


class Perturbed(torch.optim.SGD):
    """SGD with momentum; `scales` is a tensor among the settings of its groups,
    as some optimizers have them.
    """

    def __init__(self, groups, lr):
        super().__init__(groups, lr=lr, momentum=0.9)
        for group in self.param_groups:
            group["scales"] = torch.zeros(len(group["params"]))

    def step(self, closure=None):
        for group in self.param_groups:
            group["scales"] += torch.stack(
                [parameter.detach().abs().mean() for parameter in group["params"]]
            )
        super().step(closure)

    @contextlib.contextmanager
    def moved(self):
        """Each parameter a little off, at random and by its scale, while the block runs."""
        before = [(p, p.detach().clone()) for group in self.param_groups for p in group["params"]]
        for group in self.param_groups:
            for parameter, scale in zip(group["params"], group["scales"], strict=True):
                parameter.data += 0.01 * scale * torch.randn_like(parameter)
        yield
        for parameter, value in before:
            parameter.data.copy_(value)


@dataclass(kw_only=True)
class Momentum(PeftMethod):
    """Train a fresh module for each task by SGD with momentum; remember how it moved last."""

    def optimizer(self, groups, training, *, examples):
        assert examples > 0
        return Perturbed(groups, training.learning_rate)

    def around(self, optimizer):
        return optimizer.moved()

    def end(self, backbone, task, optimizer):
        for name, parameter in adapters.trainable(backbone.model).items():
            self.state[name] = optimizer.state[parameter]["momentum_buffer"].clone()
        self.state["scales"] = optimizer.param_groups[0]["scales"].clone()
