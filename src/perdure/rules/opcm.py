"""OPCM (Tang et al. 2025): add the part of each task vector orthogonal to earlier ones."""

from typing import Annotated

from annotated_types import Ge, Lt

from perdure.merging.rule import nature
from perdure.rules.parts.spectral import Block, added
from perdure.vectors.task_vector import TaskVector

STATE = "one task vector, whose rank grows by each task's; the last lambda; the mean norm"


@nature("sequential", state=STATE)
def opcm(
    vectors: dict[str, TaskVector],
    *,
    alpha: Annotated[float, Ge(0), Lt(1)] = 0.5,
    block: Block = "topleft",
) -> TaskVector:
    """Add each task vector's projection: M_t = (lambda_(t-1) M_(t-1) + P(tau_t)) / lambda_t.

    lambda_t, near sqrt(t), is one number for the whole model, chosen so that |M_t| is the mean
    of |tau_1|, …, |tau_t|. P takes each matrix of tau_t in the basis of M_(t-1)'s singular
    vectors, and removes the diagonal and the block of the leading singular vectors, whose
    values sum to at most the share alpha. The result is orthogonal to M_(t-1). Biases add up.

    The authors' code adds embedding tables without projection. Task vectors do not distinguish
    them from linear layers, so we project all matrices. This matters for LoRA on embeddings and
    with `peft: full`: mostly in these tables, elsewhere through lambda_t.

    Parameters
    ----------
    alpha
        A share in [0, 1); the larger it is, the more P removes.
    block
        `topleft`: remove what lies along leading singular vectors on both sides, as in the
        authors' code; `both`: on either side.

    Examples
    --------
    >>> import torch
    >>> a = TaskVector({"w": torch.tensor([[2.0, 0.0], [0.0, 0.0]])})
    >>> b = TaskVector({"w": torch.tensor([[2.0, 0.0], [0.0, 2.0]])})
    >>> merged = opcm({"a": a, "b": b})
    >>> round(merged.norm(), 4), [round(x, 4) for x in merged.dense("w").diag().tolist()]
    (2.4142, [1.7071, 1.7071])

    References
    ----------
    Tang et al., Merging Models on the Fly Without Retraining, arXiv 2501.09522. There,
    alpha = 1 acts like 0, and below full rank arbitrary directions are removed as well. The
    first release removed the diagonal only from a copy, so its figures are for another rule.
    """
    merged = TaskVector({})
    factor = 1.0  # lambda
    norms: list[float] = []
    for deferred in vectors.values():
        vector = deferred.made()  # it is read several times
        norms.append(vector.norm())
        entries = dict((merged * factor + vector).entries)
        for name, entry in entries.items():
            # A layer in only one of them has nothing to be orthogonal to.
            in_both = name in merged and name in vector
            if in_both and len(entry.shape) == 2:
                entries[name] = added(
                    merged[name],
                    factor,
                    vector[name],
                    alpha=alpha,
                    block=block,
                )
        merged = TaskVector(entries)
        mean = sum(norms) / len(norms)
        size = merged.norm()
        # A smaller sum is rounding error of task vectors that cancel: do not amplify it.
        usable = len(norms) > 1 and size > 1e-6 * mean
        factor = size / mean if usable else 1.0
        merged = merged * (1 / factor)
    return merged
