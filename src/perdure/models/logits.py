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
        """Return KL(other ‖ self) at a temperature, averaged over the examples.

        The value of an example is the mean over its places. Distillation minimises this value,
        with the teacher's logits for the same batch as `other`.
        """
        return self.per_example(self.distances(other, temperature)).mean()

    def distances(self, other: "Logits", temperature: float) -> Float[Tensor, " places"]:
        """Return KL(other ‖ self) at a temperature at each place.

        Between equal logits the gradient is exactly 0. With log-softmax it would be a rounding
        error, which Adam turns into a full step when it is the first gradient.
        """
        # Not in half precision, which `bf16` may compute the logits in.
        precision = torch.promote_types(self.values.dtype, torch.float32)
        student = self.values.to(precision) / temperature
        teacher = other.values.to(precision) / temperature
        student_norm = student.logsumexp(1)
        teacher_norm = teacher.logsumexp(1)
        # The derivative of `student_norm` is computed as these probabilities are.
        probabilities = (teacher - teacher_norm[:, None]).exp()
        # Outputs that the teacher's head lacks contribute nothing, but -inf - -inf is NaN.
        difference = (teacher - student).masked_fill(other.values.isneginf(), 0.0)
        return student_norm - teacher_norm + (probabilities * difference).sum(1)

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
