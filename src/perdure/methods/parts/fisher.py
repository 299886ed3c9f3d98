"""The diagonal of the Fisher information of a module."""

from collections.abc import Iterator
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from perdure.methods.parts.per_example import mean_over_examples
from perdure.models.backbone import Backbone, Encoded

Labels = Literal["true", "sampled", "empirical"]
"""Which labels the gradients are of: all, weighted by p(y | x); one drawn from p(y | x); or the right one."""


def fisher(backbone: Backbone, examples: Encoded, task: str, labels: Labels) -> dict[str, Tensor]:
    """F = E_x E_y [∂ log p(y | x) / ∂θ]² for each parameter of the module, by its name; on the CPU.

    Parameters
    ----------
    task
        Whose head gives p(y | x).
    labels
        Where y is from. `sampled` follows torch's random state.

    References
    ----------
    Kirkpatrick et al., Overcoming catastrophic forgetting in neural networks, arXiv 1612.00796; the kinds of Fisher:
    Kunstner et al., arXiv 1905.12558.
    """

    def terms(logits: Float[Tensor, "batch classes"], right: Int[Tensor, " batch"]) -> Iterator[Tensor]:
        log_p = logits.log_softmax(1)
        if labels == "true":
            for column in log_p.unbind(1):
                yield column.detach().exp().sqrt() * column
            return
        chosen = right if labels == "empirical" else torch.multinomial(log_p.detach().exp(), 1)[:, 0]
        yield log_p.gather(1, chosen[:, None])[:, 0]

    return mean_over_examples(backbone, examples, task, terms, torch.square)
