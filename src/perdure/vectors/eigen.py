"""Leading eigenvectors of a symmetric matrix G without negative eigenvalues: a few of many at a fraction of the cost.

Everything is deterministic: the random start has a fixed seed.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

Wanted = Callable[[Float[Tensor, " found"]], int]
"""How many eigenvectors are wanted, from the eigenvalues in falling order, perhaps only the first ones."""

BLOCK = 8
"""Vectors by which the Krylov space grows. With fewer a smaller space does, but products with them are slower."""
LIMIT = 0.4
"""The share of all dimensions at which the Krylov space is given up."""


def leading(
    X: Float[Tensor, "d n"], wanted: Wanted, *, square: bool = True, whole: bool = False
) -> Float[Tensor, "d wanted"]:
    """The leading eigenvectors of G = X Xᵀ (which are left singular vectors of X), or of G = X if not `square`.

    Of an eigenvalue that G has more than eight times, exactly, some vectors may not be seen before others are wanted;
    with `whole` G is decomposed in any case, and all are.

    Examples
    --------
    >>> X = torch.diag(torch.tensor([1.0, 3.0, 2.0, 0.0]))
    >>> leading(X, lambda values: int((values >= 4).sum())).abs().argmax(dim=0).tolist()
    [1, 2]
    """
    few = None if whole else _few(X, wanted, square)
    if few is not None:
        return few
    values, vectors = _eigen(X @ X.T if square else X)
    return vectors[:, : wanted(values)]


def _few(X: Tensor, wanted: Wanted, square: bool) -> Tensor | None:
    """The same from a small Krylov space, or None when it does not find them.

    The space is that of Ω, G Ω, G² Ω, ... for a random block Ω: neither G nor a decomposition of its size is formed.
    Vectors are rows here: products with rows are the faster ones.
    """
    limit, look = LIMIT * len(X), 4 * BLOCK
    new = torch.randn(BLOCK, len(X), dtype=X.dtype, generator=torch.Generator().manual_seed(0))
    space = images = new[:0]
    while len(space) + BLOCK <= limit:
        for _ in range(2):  # the second time takes out what rounding has left
            new = torch.linalg.qr((new - (new @ space.T) @ space).T)[0].T
        space, new = torch.cat([space, new]), new @ X
        new = new @ X.T if square else new
        images = torch.cat([images, new])
        if len(space) >= look:
            look = 1.4 * len(space)
            values, mixtures = _eigen(space @ images.T)
            count = wanted(values)
            if 3 * count > limit:
                return None  # so many would not converge
            if count < len(values) and _converged(values, mixtures[:, :count].T, space, images):
                return space.T @ mixtures[:, :count]
    return None


def _converged(values: Tensor, mixtures: Tensor, space: Tensor, images: Tensor) -> bool:
    """Whether the eigenvectors are off by an angle of at most 1e-10, or by rounding.

    The sine of the angle is at most ‖G v - λ v‖ over the gap to the first eigenvalue that is not wanted (Davis, Kahan).
    """
    kept = values[: len(mixtures)]
    residuals = (mixtures @ images - kept[:, None] * (mixtures @ space)).norm(dim=1)
    return bool((residuals <= 1e-10 * (kept - values[len(kept)]) + 1e-15 * values[0]).all())


def _eigen(G: Tensor) -> tuple[Tensor, Tensor]:
    """All eigenvalues, in falling order, and their vectors."""
    values, vectors = torch.linalg.eigh(G)
    return values.flip(-1).clamp_min(0), vectors.flip(-1)
