"""Linear discriminant analysis, computed from sums of features."""

from jaxtyping import Float
from torch import Tensor, linalg

from perdure.vectors.statistics import Statistics, within


def discriminant(
    statistics: Statistics,
    shrinkage: float,
) -> tuple[Float[Tensor, "classes features"], Float[Tensor, " classes"]]:
    """Return the weights and biases of Gaussian classes that share one covariance Σ.

    The weights of class c are Σ⁻¹ μ_c, and its bias is −μ_cᵀ Σ⁻¹ μ_c / 2 + log π_c. Every
    class must have at least one example.

    Parameters
    ----------
    shrinkage
        The s in (1 − s) Σ + s (trace Σ / d) I, which replaces Σ.
    """
    means = statistics.sums / statistics.counts[:, None]
    covariance = within(
        statistics.counts,
        means,
        statistics.products,
        shrinkage,
    )
    # Each row of the classifier is Σ⁻¹ μ_c: solving is more accurate than inverting Σ.
    columns = linalg.solve(covariance, means.T)
    weight = columns.T
    priors = statistics.counts / statistics.counts.sum()
    squares = (weight * means).sum(1)  # μ_cᵀ Σ⁻¹ μ_c
    bias = priors.log() - 0.5 * squares
    return weight, bias
