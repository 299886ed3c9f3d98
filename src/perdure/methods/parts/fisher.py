"""The diagonal of the Fisher information of a module."""

from collections.abc import Iterator
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from perdure.methods.parts.per_example import mean_over_examples
from perdure.models.backbone import Backbone
from perdure.models.examples import Examples
from perdure.models.logits import Logits

Labels = Literal["true", "sampled", "empirical"]
"""The labels y that the Fisher information uses.

`true`: all labels, weighted by p(y | x); `sampled`: one label drawn from p(y | x);
`empirical`: the correct label.
"""


def fisher(backbone: Backbone, examples: Examples, labels: Labels) -> dict[str, Tensor]:
    """Return F = E_x E_y [∂ log p(y | x) / ∂θ]² for each parameter θ of the module, by name.

    p(y | x) comes from the head of the example's task. The result is on the CPU.

    Parameters
    ----------
    labels
        The labels y over which to take the expectation. `sampled` uses torch's random state.

    References
    ----------
    Kirkpatrick et al., Overcoming catastrophic forgetting in neural networks, arXiv
    1612.00796; variants of the Fisher information: Kunstner et al., arXiv 1905.12558.
    """

    return mean_over_examples(
        backbone,
        examples,
        lambda answers: log_likelihoods(answers, labels),
        torch.square,
    )


def log_likelihoods(answers: Logits, labels: Labels) -> Iterator[Float[Tensor, " examples"]]:
    """Yield terms whose squared gradients add up to an estimate of the Fisher information.

    `sampled` uses torch's random state.
    """
    if labels == "true":
        log_probabilities = answers.values.log_softmax(1)
        for log_p in log_probabilities.unbind(1):
            # The gradient is squared later: √p · ∂ log p, squared, is p · (∂ log p)².
            p = log_p.detach().exp()
            yield p.sqrt() * log_p
        return
    if labels == "sampled":
        answers = answers.sampled()
    yield -answers.losses()
