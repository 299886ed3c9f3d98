"""The model's answers to a batch, and the right answers."""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class Logits:
    """The model's outputs for a batch, at each position that predicts part of an answer.

    There is one place per example if classes answer, and one per target token if text does.

    Attributes
    ----------
    values
        One row per place. The outputs are classes, or a vocabulary; a head with fewer classes than
        another of the batch is filled up with -inf, so that a mixed batch is one tensor.
    targets
        The right output at each place.
    rows
        The example of the batch that each place belongs to. The places are in any order.
    examples
        The number of examples in the batch.

    Examples
    --------
    >>> values = torch.tensor([[0.0, 0.0, -torch.inf], [0.0, 0.0, 0.0]])
    >>> answers = Logits(values, torch.tensor([1, 0]), rows=torch.tensor([0, 1]), examples=2)
    >>> answers.losses().exp().tolist()  # the first head has two classes, the second three
    [2.0, 3.0]
    """

    values: Float[Tensor, "places outputs"]
    targets: Int[Tensor, " places"]
    rows: Int[Tensor, " places"]
    examples: int

    def losses(self) -> Float[Tensor, " examples"]:
        """Return -log p(target) of each example: the mean over its places."""
        losses = F.cross_entropy(self.values, self.targets, reduction="none")
        return self.per_example(losses)

    def per_example(self, values: Float[Tensor, " places"]) -> Float[Tensor, " examples"]:
        """Average one number per place over the places of each example.

        An example without any place gets 0.
        """
        zeros = values.new_zeros(self.examples)
        ones = torch.ones_like(values)
        totals = zeros.index_add(0, self.rows, values)
        places = zeros.index_add(0, self.rows, ones)
        return totals / places.clamp_min(1)

    def distance(self, other: "Logits", temperature: float) -> Float[Tensor, ""]:
        """Return KL(other ‖ self), with both at a temperature, as the mean over places.

        Distillation minimises it: `other` is the teacher's answer to the same batch.
        """
        student = self.values / temperature
        teacher = other.values / temperature
        student = student.log_softmax(1)
        teacher = teacher.log_softmax(1)
        # An output that the teacher's head lacks adds nothing, but 0 · (-inf - -inf) is NaN.
        padding = other.values.isneginf()
        student = student.masked_fill(padding, 0.0)
        teacher = teacher.masked_fill(padding, 0.0)
        # `batchmean` divides by the number of rows, which are places here.
        return F.kl_div(
            input=student,
            target=teacher,
            log_target=True,
            reduction="batchmean",
        )

    def sampled(self) -> "Logits":
        """Return the same answers with targets drawn from the model, by torch's random state."""
        probabilities = self.values.detach().log_softmax(1).exp()
        targets = torch.multinomial(probabilities, 1)[:, 0]
        return replace(self, targets=targets)
