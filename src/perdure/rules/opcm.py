"""OPCM (Tang et al. 2025): add each task vector's part orthogonal to the earlier ones."""

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
    """M_t = (lambda_(t-1) M_(t-1) + P(tau_t)) / lambda_t.

    lambda_t, close to sqrt(t), is one number for the whole model, so that |M_t| is the mean of
    |tau_1|, …, |tau_t|. P removes from each matrix of tau_t, in the basis of the singular
    vectors of M_(t-1), the diagonal and the block of the first singular vectors: those whose
    values sum to at most the share alpha. The rest is orthogonal to M_(t-1). Biases are added.

    The authors' code adds embedding tables without projection. Task vectors do not distinguish them
    from linear layers, so here all matrices are projected. This matters for LoRA on embeddings and
    with `peft: full`: most for these tables, and through lambda_t for the rest.

    Parameters
    ----------
    alpha
        In [0, 1); higher values remove more.
    block
        `topleft`: the block of the first singular vectors on both sides, as in the authors' code;
        `both`: everything in a first singular vector of either side.

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
    alpha = 1 acts as 0, and below full rank arbitrary directions are removed, too. The first
    release removed the diagonal only in a copy: its figures are of another rule.
    """
    merged = TaskVector({})
    factor = 1.0  # lambda
    norms: list[float] = []
    for deferred in vectors.values():
        vector = deferred.made()  # it is read several times
        norms.append(vector.norm())
        entries = dict((merged * factor + vector).entries)
        for name, entry in entries.items():
            # A layer of only one of them has nothing to be orthogonal to.
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
        # A smaller sum is the rounding left by task vectors that cancel: do not blow it up.
        usable = len(norms) > 1 and size > 1e-6 * mean
        factor = size / mean if usable else 1.0
        merged = merged * (1 / factor)
    return merged
