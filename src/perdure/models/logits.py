"""A model's logits for a batch, with their targets."""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class Logits:
    """A model's logits for a batch, with the target at each place.

    A place is a position at which an answer, or a part of it, is predicted. With an
    encoder there is one place per example; with a language model, one per target token.

    Attributes
    ----------
    values
        One row of logits per place, over the classes of a head or over the vocabulary. If
        the heads used in a batch differ in size, the rows of smaller heads are padded
        with -inf.
    targets
        The correct class or token at each place.
    rows
        The index of the example that each place belongs to. The places can be in any order.
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
        """Return the loss of each example, the mean of -log p(target) over its places."""
        losses = F.cross_entropy(self.values, self.targets, reduction="none")
        return self.per_example(losses)

    def per_example(self, values: Float[Tensor, " places"]) -> Float[Tensor, " examples"]:
        """Return the mean of `values`, which are given per place, for each example.

        The mean is 0 for an example without places.
        """
        zeros = values.new_zeros(self.examples)
        ones = torch.ones_like(values)
        totals = zeros.index_add(0, self.rows, values)
        places = zeros.index_add(0, self.rows, ones)
        return totals / places.clamp_min(1)

    def distance(self, other: "Logits", temperature: float) -> Float[Tensor, ""]:
        """Return KL(other ‖ self) at a temperature, averaged over the places.

        Distillation minimises this value, with the teacher's logits for the same batch as `other`.
        """
        student, teacher = self._softened(other, temperature)
        # `batchmean` divides by the number of rows, which are places here.
        return F.kl_div(
            input=student,
            target=teacher,
            log_target=True,
            reduction="batchmean",
        )

    def distances(self, other: "Logits", temperature: float) -> Float[Tensor, " places"]:
        """Return KL(other ‖ self) at a temperature at each place; `distance` is its mean."""
        student, teacher = self._softened(other, temperature)
        values = F.kl_div(student, teacher, log_target=True, reduction="none")
        return values.sum(1)

    def _softened(
        self, other: "Logits", temperature: float
    ) -> tuple[Float[Tensor, "places outputs"], Float[Tensor, "places outputs"]]:
        """Return the log-probabilities of both at a temperature, 0 where `other` has no output."""
        student = self.values / temperature
        teacher = other.values / temperature
        student = student.log_softmax(1)
        teacher = teacher.log_softmax(1)
        # Outputs that the teacher's head lacks contribute nothing, but 0 · (-inf - -inf) is NaN.
        padding = other.values.isneginf()
        return student.masked_fill(padding, 0.0), teacher.masked_fill(padding, 0.0)

    def without_targets(self) -> "Logits":
        """Return the logits without those of the targets, which become -inf.

        Their softmax is the distribution over the wrong answers.

        Examples
        --------
        >>> values = torch.tensor([[0.2, 0.6, 0.2]]).log()
        >>> one = torch.tensor([0])
        >>> Logits(values, one, rows=one, examples=1).without_targets().values.softmax(1)
        tensor([[0.0000, 0.7500, 0.2500]])
        """
        values = self.values.scatter(1, self.targets[:, None], -torch.inf)
        return replace(self, values=values)

    def sampled(self) -> "Logits":
        """Return the same logits, with targets drawn from the model's predicted distribution.

        The targets are drawn with torch's global random generator.
        """
        probabilities = self.values.detach().log_softmax(1).exp()
        targets = torch.multinomial(probabilities, 1)[:, 0]
        return replace(self, targets=targets)
