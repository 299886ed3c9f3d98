"""OPCM (Tang et al. 2025): add the part of each task vector that is orthogonal to earlier ones."""

from typing import Annotated

from annotated_types import Ge, Lt

from perdure.merging.rule import nature
from perdure.rules.parts.spectral import Block, added
from perdure.vectors.task_vector import TaskVector


@nature("sequential", state="one task vector, of growing rank; the last lambda; the mean norm")
def opcm(
    vectors: dict[str, TaskVector],
    *,
    alpha: Annotated[float, Ge(0), Lt(1)] = 0.5,
    block: Block = "topleft",
) -> TaskVector:
    """Add a projection of each task vector: M_t = (lambda_(t-1) M_(t-1) + P(tau_t)) / lambda_t.

    lambda_t, close to sqrt(t), is one number for the model, chosen such that |M_t| is the mean
    of |tau_1|, …, |tau_t|. P acts on each matrix of tau_t in the singular basis of M_(t-1): it
    removes the diagonal, which makes P(tau_t) orthogonal to M_(t-1), and the block of leading
    singular vectors whose values sum to at most alpha times the total. It skips biases.

    The authors' code does not project embedding tables. Task vectors do not distinguish them
    from linear layers, so this rule projects all matrices. This affects LoRA on embeddings and
    `peft: full`: mostly the tables, and all other layers slightly through lambda_t.

    Parameters
    ----------
    alpha
        A fraction in [0, 1). P removes more with a larger alpha.
    block
        `topleft`: remove components whose left and right singular vectors are both leading, as
        in the authors' code; `both`: remove components where either of them is.

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
    Tang et al., Merging Models on the Fly Without Retraining, arXiv 2501.09522. In their code,
    alpha = 1 acts like 0, and below full rank, arbitrary directions are also removed. The first
    release removed the diagonal only from a copy, so its figures belong to a different rule.
    """
    merged = TaskVector({})
    factor = 1.0  # lambda
    norms: list[float] = []
    for deferred in vectors.values():
        vector = deferred.made()  # it is read several times
        norms.append(vector.norm())
        entries = dict((merged * factor + vector).entries)
        for name, entry in entries.items():
            # A layer that only one of them has is not projected.
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
        # A smaller sum is the rounding error of task vectors that cancel. Do not amplify it.
        usable = len(norms) > 1 and size > 1e-6 * mean
        factor = size / mean if usable else 1.0
        merged = merged * (1 / factor)
    return merged
