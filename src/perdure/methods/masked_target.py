"""TMKL and EAFT (2026): learn the right answers, and leave everything else as it was."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from annotated_types import Ge, Gt
from jaxtyping import Float
from torch import Tensor

from perdure.errors import InputError
from perdure.learning.method import Need, Tuned
from perdure.learning.wrapper import Wrapper, chain, inner_name
from perdure.methods.parts.variational import Variational
from perdure.models import adapters
from perdure.models.backbone import Backbone, evaluating
from perdure.models.examples import Batch
from perdure.models.logits import Logits

LIKELIEST = 20
"""The number of most likely tokens whose entropy EAFT computes."""
LARGEST_ENTROPY = 3.0
"""The divisor of that entropy, as published: the largest entropy of 20 tokens is ln 20 = 2.996."""
OWN_WEIGHTS = ("online_replay", "td_vcl")
"""The methods that weigh the losses of a batch themselves."""


@dataclass(kw_only=True)
class MaskedTarget(Wrapper):
    """Learn with another method, and keep the distribution over wrong answers as it was.

    L = loss of the method + strength · mean over places of KL(p̃_base ‖ p̃_θ), where p̃ is
    the softmax without the correct token, and p̃_base is that of the model with the
    adapter switched off. The correct token may become as likely as the task needs, while
    the ratios of all others stay. The mean is over the tokens of an answer, then over
    examples. With an encoder, the correct class takes the place of the token, and both
    distributions come from the current head; in a task of two classes one wrong class is
    left, and the term is 0.

    If the method trains a branch on top of earlier ones, these belong to the base model.
    A step costs one more forward pass, without gradients.

    Parameters
    ----------
    method
        The inner method, such as `sequential`.
    strength
        λ. With 0, only `token_weights` has an effect; without them, the method is the inner
        one.
    token_weights
        `entropy` (EAFT): multiply the cross-entropy of each token by (H / 3)^power, where
        H is the entropy, in nats, of the model's 20 most likely tokens. Tokens that
        contradict what the model is sure of then count little, so facts are not
        overwritten. With a head of n < 20 classes, H is divided by ln n. None, the
        default: all tokens have the weight 1.
    power
        The exponent α of the weights, used with `token_weights`.

    References
    ----------
    TMKL: Mask the Target, arXiv 2605.29498, of which only the abstract was available; the
    published λ is not known. EAFT: arXiv 2601.02151. One public implementation leaves out the
    divisor 3, which triples the loss.
    """

    tuned = Tuned("strength", 1e-2, 1e1)

    strength: Annotated[float, Ge(0)] = 1.0
    token_weights: Literal["entropy"] | None = None
    power: Annotated[float, Gt(0)] = 1.0

    def __post_init__(self):
        inner = inner_name(self)
        if self.method.module is None:
            raise InputError(
                f"`masked_target` compares the model with and without its adapter, but `{inner}` "
                "trains none. Use `sequential`, `inc_lora` or `lwf`."
            )
        if self.token_weights and inner in OWN_WEIGHTS:
            raise InputError(
                f"`token_weights` cannot be used around `{inner}`, which weighs the losses of a "
                "batch itself: leave it out."
            )
        if self.power != 1 and not self.token_weights:
            raise InputError("`power` is used only with `token_weights: entropy`: leave it out.")

    @property
    def needs(self) -> frozenset[Need]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The requirements of the inner method; no heads if they draw noise at each reading."""
        needed: frozenset[Need] = frozenset({"words"}) if self._reads_noise else frozenset()
        return self.method.needs | needed

    @property
    def instead(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        if self._reads_noise:
            return (
                f"Around `{inner_name(self)}` with `sampling: examples`, each reading of a head "
                "draws other noise: use `sampling: weights`."
            )
        return self.method.instead

    @property
    def _reads_noise(self) -> bool:
        inner = chain(self)[-1]
        return isinstance(inner, Variational) and inner.sampling == "examples"

    def loss(self, backbone: Backbone, batch: Batch) -> Tensor:
        with watched(backbone, batch) as outputs:
            loss = super().loss(backbone, batch)
        hidden = outputs[0] if outputs else backbone(batch)
        student = backbone.read(hidden, batch)
        if self.token_weights:
            loss = loss + self._reweighting(student)
        if self.strength:
            loss = loss + self.strength * self._distance(backbone, batch, student)
        return loss

    def _distance(self, backbone: Backbone, batch: Batch, student: Logits) -> Float[Tensor, ""]:
        """Return the mean over examples of the mean KL(p̃_base ‖ p̃_θ) over their places."""
        with torch.no_grad(), evaluating(backbone), adapters.disabled(backbone.model):
            base = backbone.read(backbone(batch), batch)
        others = student.without_targets()
        distances = others.distances(base.without_targets(), temperature=1.0)
        return student.per_example(distances).mean()

    def _reweighting(self, student: Logits) -> Float[Tensor, ""]:
        """Return what has to be added to the mean cross-entropy to weigh its places."""
        losses = torch.nn.functional.cross_entropy(
            student.values,
            student.targets,
            reduction="none",
        )
        weights = normalised_entropy(student.values.detach()) ** self.power
        return student.per_example((weights - 1) * losses).mean()


def normalised_entropy(values: Float[Tensor, "places outputs"]) -> Float[Tensor, " places"]:
    """Return the entropy of the most likely outputs at each place, divided by its largest value.

    Outputs with the logit -inf, which pad smaller heads, do not count.
    """
    top = values.topk(min(LIKELIEST, values.shape[1]), dim=1).values
    entropies = torch.special.entr(top.softmax(1)).sum(1)
    counts = top.isfinite().sum(1)
    largest = torch.where(counts < LIKELIEST, counts.log(), LARGEST_ENTROPY)
    return entropies / largest


@contextlib.contextmanager
def watched(backbone: Backbone, batch: Batch) -> Iterator[list[Tensor]]:
    """Record the outputs of the backbone for a batch inside the block.

    Passes without gradients, such as those of a teacher, are left out.
    """
    outputs: list[Tensor] = []

    def keep(module: torch.nn.Module, inputs: tuple[object, ...], output: Tensor) -> None:
        if inputs[0] is batch and output.requires_grad:
            outputs.append(output)

    handle = backbone.register_forward_hook(keep)
    try:
        yield outputs
    finally:
        handle.remove()
