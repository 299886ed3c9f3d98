"""OPCM (Tang et al. 2025): each task vector is added where it is orthogonal to what was merged before."""

from typing import Annotated

from annotated_types import Ge, Lt

from perdure.merging.rule import nature
from perdure.rules.parts.spectral import Block, added
from perdure.vectors.task_vector import TaskVector


@nature(
    "sequential",
    state="one task vector, of a rank that grows by each task's; the last lambda; the mean norm",
)
def opcm(
    vectors: dict[str, TaskVector],
    *,
    alpha: Annotated[float, Ge(0), Lt(1)] = 0.5,
    block: Block = "topleft",
) -> TaskVector:
    """M_t = (lambda_(t-1) M_(t-1) + P(tau_t)) / lambda_t, with lambda_t such that |M_t| = mean of |tau_1|, …, |tau_t|.

    P removes from a matrix of tau_t, in the basis of the singular vectors of M_(t-1)'s, the diagonal, and the block of
    the first singular vectors: those whose values sum up to at most the share alpha. What remains is orthogonal to
    M_(t-1). What is no matrix, as a bias, is added as it is. lambda_t is one number for the whole model, near sqrt(t).

    A table of embeddings is a matrix, too. The authors' code projects linear layers alone and adds such tables as they
    are; a task vector names its layers but does not say of which kind they are, so that here all matrices are alike.
    It matters for LoRA on embeddings and with `peft: full`, where the tables differ most, and through lambda_t, which
    all layers share, the others a little.

    Parameters
    ----------
    alpha
        In [0, 1); the higher, the more is removed.
    block
        `topleft`: the block of the first singular vectors on both sides, as the authors' code has it; `both`: all that
        has one of the first singular vectors on either side.

    Examples
    --------
    >>> import torch
    >>> a, b = torch.tensor([[2.0, 0.0], [0.0, 0.0]]), torch.tensor([[2.0, 0.0], [0.0, 2.0]])
    >>> merged = opcm({"a": TaskVector({"w": a}), "b": TaskVector({"w": b})})
    >>> round(merged.norm(), 4), [round(x, 4) for x in merged.dense("w").diag().tolist()]
    (2.4142, [1.7071, 1.7071])

    References
    ----------
    Tang et al., Merging Models on the Fly Without Retraining, arXiv 2501.09522. There alpha = 1 acts as alpha = 0; and
    of a matrix without full rank, as LoRA's, the diagonal along arbitrary singular vectors is removed too. The first
    release of the code meant to remove the diagonal, but did so in a copy: figures made with it are of another rule.
    """
    merged, factor, norms = TaskVector({}), 1.0, []
    for vector in (given.made() for given in vectors.values()):
        norms.append(vector.norm())
        entries = dict((merged * factor + vector).entries)
        for name in {
            name
            for name in entries
            if name in merged and name in vector and len(entries[name].shape) == 2
        }:
            entries[name] = added(merged[name], factor, vector[name], alpha=alpha, block=block)
        merged, mean = TaskVector(entries), sum(norms) / len(norms)
        size = merged.norm()
        factor = (
            size / mean if len(norms) > 1 and size > 1e-6 * mean else 1.0
        )  # what is less is rounding
        merged = merged * (1 / factor)
    return merged
