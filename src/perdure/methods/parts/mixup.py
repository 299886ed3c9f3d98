"""Mixup of new examples with old ones (Zhang et al., arXiv 1710.09412)."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from perdure.models.backbone import Backbone
from perdure.models.examples import Batch


@dataclass(frozen=True)
class Pairs:
    """A batch of new examples, each paired with an old example.

    What is mixed depends on the model. Pixels are mixed for images. For a text encoder,
    the pooled features are mixed, because a mixture of two texts is not a text. For a
    language model, only the losses are mixed, because answers differ in length.

    Attributes
    ----------
    old
        One old example for each new one; None if there are none.
    share
        The weight λ of the new examples.
    mixes
        False to mix only the losses, whatever the model.
    """

    new: Batch
    old: Batch | None = None
    share: float = 1.0
    mixes: bool = False

    def inputs(self, backbone: Backbone) -> list[Batch]:
        """Return the batches to run: the mixed one, or the new and the old one."""
        if self.old is None:
            return [self.new]
        if not self.mixes or backbone.kind != "image":
            return [self.new, self.old]
        mixed = {}
        for name, values in self.new.inputs.items():
            mixed[name] = self._mixed(values, self.old.inputs[name])
        return [replace(self.new, inputs=mixed)]

    def losses(self, backbone: Backbone, outputs: Sequence[Tensor]) -> Float[Tensor, " batch"]:
        """Return the loss of each pair, from the outputs for the batches in `inputs`."""
        if self.old is None:
            return backbone.losses(self.new, outputs[0])
        if self.mixes and backbone.has_heads and len(outputs) == 2:
            outputs = [self._mixed(*outputs)]
        # If there is a single mixed output, both answers are read from it.
        new = backbone.losses(self.new, outputs[0])
        old = backbone.losses(self.old, outputs[-1])
        return self._mixed(new, old)

    def _mixed(self, new: Tensor, old: Tensor) -> Tensor:
        return self.share * new + (1 - self.share) * old


def beta(concentration: float) -> float:
    """Draw λ ~ Beta(a, a) with torch's global random generator."""
    a = torch.tensor(float(concentration))
    return torch.distributions.Beta(a, a).sample().item()
