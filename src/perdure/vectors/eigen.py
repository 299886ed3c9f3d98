"""Leading eigenvectors of a symmetric matrix G without negative eigenvalues.

Computing a few eigenvectors costs a fraction of a full decomposition. Everything is deterministic:
the random start has a fixed seed.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

Wanted = Callable[[Float[Tensor, " values"]], int]
"""Choose the number of eigenvectors from the eigenvalues in falling order.

It may get only the first eigenvalues, as many as the Krylov space has.
"""

# Vectors by which the Krylov space grows. With fewer, a smaller space is enough, but products with
# them are slower.
BLOCK = 8
# The share of all dimensions at which the Krylov space is given up for a full decomposition.
LIMIT = 0.4


def leading(
    X: Float[Tensor, "d n"],
    choose: Wanted,
    *,
    square: bool = True,
    whole: bool = False,
) -> Float[Tensor, "d chosen"]:
    """Return the leading eigenvectors of G = X Xᵀ, or of G = X if not `square`.

    Those of X Xᵀ are the left singular vectors of X.

    Parameters
    ----------
    choose
        Chooses the number of eigenvectors from the eigenvalues.
    square
        G is X Xᵀ rather than X itself.
    whole
        Always decompose all of G. The Krylov space may miss some vectors of an eigenvalue that G
        has more than eight times, exactly; the full decomposition finds them all.

    Examples
    --------
    >>> X = torch.diag(torch.tensor([1.0, 3.0, 2.0, 0.0]))
    >>> leading(X, lambda values: int((values >= 4).sum())).abs().argmax(dim=0).tolist()
    [1, 2]
    """
    if not whole:
        vectors = _from_krylov(X, choose, square)
        if vectors is not None:
            return vectors
    G = X @ X.T if square else X
    values, vectors = _eigen(G)
    return vectors[:, : choose(values)]


def _from_krylov(
    X: Float[Tensor, "d n"], choose: Wanted, square: bool
) -> Float[Tensor, "d chosen"] | None:
    """Return the leading eigenvectors from a small Krylov space, or None if it is too small.

    The space is that of Ω, G Ω, G² Ω, ... for a random block Ω: neither G nor a decomposition of
    its size is formed.
    """
    # Not `torch.lobpcg`: it must be told the number of vectors, which here depends on the values.
    limit = LIMIT * len(X)
    next_check = 4 * BLOCK
    # A generator of its own leaves the global random state alone.
    generator = torch.Generator().manual_seed(0)
    # Vectors are rows throughout: products with rows are the faster ones.
    block = torch.randn(BLOCK, len(X), dtype=X.dtype, generator=generator)
    space = block[:0]
    images = block[:0]  # G times each vector of the space
    while len(space) + BLOCK <= limit:
        block = _orthonormal(block, space)
        space = torch.cat([space, block])
        block = block @ X
        if square:
            block = block @ X.T
        images = torch.cat([images, block])
        # Each check decomposes a matrix of the space's size, so it waits until the space has grown.
        if len(space) < next_check:
            continue
        next_check = 1.4 * len(space)
        values, mixtures = _eigen(space @ images.T)
        count = choose(values)
        if 3 * count > limit:
            return None  # that many would not converge within the limit
        # Convergence is judged by the next eigenvalue, so there must be one.
        if count < len(values):
            chosen = mixtures[:, :count]
            if _converged(values, chosen.T, space, images):
                return space.T @ chosen
    return None


def _orthonormal(
    block: Float[Tensor, "block d"], space: Float[Tensor, "size d"]
) -> Float[Tensor, "block d"]:
    """Return an orthonormal basis of the part of `block` that is orthogonal to `space`."""
    for _ in range(2):  # the second pass removes what rounding has left
        outside = block - (block @ space.T) @ space
        block = torch.linalg.qr(outside.T)[0].T
    return block


def _converged(
    values: Float[Tensor, " size"],
    mixtures: Float[Tensor, "chosen size"],
    space: Float[Tensor, "size d"],
    images: Float[Tensor, "size d"],
) -> bool:
    """Return whether the eigenvectors are accurate to an angle of 1e-10, or to rounding.

    The sine of the angle is at most ‖G v - λ v‖ over the gap to the first eigenvalue that is left
    out (Davis & Kahan).
    """
    count = len(mixtures)
    chosen = values[:count]
    gaps = chosen - values[count]
    vectors = mixtures @ space
    # `mixtures @ images` is G v for each vector v, without another product with G.
    residuals = mixtures @ images - chosen[:, None] * vectors
    # The second term is a few roundings of G's largest eigenvalue in double precision.
    tolerance = 1e-10 * gaps + 1e-15 * values[0]
    return bool((residuals.norm(dim=1) <= tolerance).all())


def _eigen(G: Float[Tensor, "d d"]) -> tuple[Float[Tensor, " d"], Float[Tensor, "d d"]]:
    """Return all eigenvalues in falling order, and their vectors."""
    values, vectors = torch.linalg.eigh(G)
    # Rounding makes some zeros slightly negative; G has no negative eigenvalues.
    values = values.flip(-1).clamp_min(0)
    return values, vectors.flip(-1)
