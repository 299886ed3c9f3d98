"""The surprise of examples: how improbable a model finds them."""

import torch
from jaxtyping import Float
from torch import Tensor

from perdure.models import shares
from perdure.models.backbone import Backbone, evaluating
from perdure.models.examples import Examples, in_order
from perdure.models.language import LanguageModel


@torch.no_grad()
def surprises(backbone: Backbone, examples: Examples) -> Float[Tensor, " examples"]:
    """Return the surprise of each example under the current model, in nats, on the CPU.

    Encoders: -log p(class | x), with the head of the example's task. Causal language
    models: the mean of -log p(token | the tokens before it) over all tokens of the prompt
    and the answer but the first. Encoder–decoder models predict no prompt: the mean over
    the tokens of the answer.

    References
    ----------
    Hazard et al., SuRe, arXiv 2511.22367.
    """
    if isinstance(backbone, LanguageModel):
        examples = backbone.whole(examples)
    with evaluating(backbone):
        batches = shares.batches(examples, backbone.device)
        losses = ((rows, backbone.losses(batch).cpu()) for rows, batch in batches)
        return in_order(shares.gathered(losses))
