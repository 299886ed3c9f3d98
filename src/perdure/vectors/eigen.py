"""Leading eigenvectors of a symmetric positive semidefinite matrix G.

Computing a few eigenvectors costs a fraction of a full decomposition. All results are
deterministic, because the random initial block has a fixed seed.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

Wanted = Callable[[Float[Tensor, " values"]], int]
"""A function that chooses the number of eigenvectors from the eigenvalues in descending order.

It may receive only the leading eigenvalues, one for each dimension of the Krylov space.
"""

# The number of vectors by which the Krylov space grows. With fewer, a smaller space would
# suffice, but matrix products would be less efficient.
BLOCK = 8
# The share of all dimensions at which the Krylov space is abandoned for a full decomposition.
LIMIT = 0.4


def leading(
    X: Float[Tensor, "d n"],
    choose: Wanted,
    *,
    square: bool = True,
    whole: bool = False,
) -> Float[Tensor, "d chosen"]:
    """Return the leading eigenvectors of G = X Xᵀ, or of G = X if `square` is false.

    The eigenvectors of X Xᵀ are the left singular vectors of X.

    Parameters
    ----------
    choose
        A function that chooses the number of eigenvectors from the eigenvalues.
    square
        If true, G is X Xᵀ rather than X itself.
    whole
        If true, always compute the full decomposition of G. The Krylov space may miss
        some eigenvectors if the multiplicity of an eigenvalue is greater than eight.

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
    """Return the leading eigenvectors from a small Krylov space, or None if they do not converge.

    The space is spanned by Ω, G Ω, G² Ω, ... for a random block Ω. Neither G nor a
    decomposition of its size is computed.
    """
    # `torch.lobpcg` is not used, because it needs to know the number of vectors in advance.
    limit = LIMIT * len(X)
    next_check = 4 * BLOCK
    # A separate generator, so that the global random state does not change.
    generator = torch.Generator().manual_seed(0)
    # Vectors are stored as rows throughout, because products with rows are faster.
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
        # A check decomposes a matrix of the size of the space, so wait until the space has grown.
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
    for _ in range(2):  # the second pass removes the rounding errors of the first
        outside = block - (block @ space.T) @ space
        block = torch.linalg.qr(outside.T)[0].T
    return block


def _converged(
    values: Float[Tensor, " size"],
    mixtures: Float[Tensor, "chosen size"],
    space: Float[Tensor, "size d"],
    images: Float[Tensor, "size d"],
) -> bool:
    """Return whether the eigenvectors are accurate to an angle of 1e-10, or up to rounding.

    The sine of the angle is at most ‖G v - λ v‖ divided by the gap to the first omitted
    eigenvalue (Davis & Kahan).
    """
    count = len(mixtures)
    chosen = values[:count]
    gaps = chosen - values[count]
    vectors = mixtures @ space
    # `mixtures @ images` is G v for each vector v, without another product with G.
    residuals = mixtures @ images - chosen[:, None] * vectors
    # The second term is a few rounding errors of G's largest eigenvalue in double precision.
    tolerance = 1e-10 * gaps + 1e-15 * values[0]
    return bool((residuals.norm(dim=1) <= tolerance).all())


def _eigen(G: Float[Tensor, "d d"]) -> tuple[Float[Tensor, " d"], Float[Tensor, "d d"]]:
    """Return all eigenvalues in descending order, and their eigenvectors."""
    values, vectors = torch.linalg.eigh(G)
    # Rounding makes some zeros slightly negative; G has no negative eigenvalues.
    values = values.flip(-1).clamp_min(0)
    return values, vectors.flip(-1)
