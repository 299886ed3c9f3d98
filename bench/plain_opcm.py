"""OPCM (arXiv 2501.09522) as published: full singular value decompositions of dense matrices.

Where a matrix has no full rank only the singular vectors of its numerical rank count:
others are arbitrary.
"""

import numpy as np

Model = dict[str, np.ndarray]


def opcm(models: list[Model], *, alpha: float) -> Model:
    """Task vectors in order, merged: each layer a matrix (out × in)."""
    merged, factor = models[0], 1.0
    norms = [norm(models[0])]
    for new in models[1:]:
        norms.append(norm(new))
        raw = {
            name: factor * merged[name] + projected(merged[name], new[name], alpha)
            for name in merged
        }
        factor = norm(raw) / np.mean(norms)
        merged = {name: value / factor for name, value in raw.items()}
    return merged


def projected(A: np.ndarray, B: np.ndarray, alpha: float) -> np.ndarray:
    """B without what it has along the diagonal and in the leading block of A's singular
    directions.
    """
    U, s, Vh = np.linalg.svd(A)
    q = int((s > 1e-6 * s[0]).sum())
    r = int(np.argmax(np.cumsum(s[:q]) / s[:q].sum() > alpha))
    P = U.T @ B @ Vh.T
    P[range(q), range(q)] = 0
    P[:r, :r] = 0
    return U @ P @ Vh


def norm(model: Model) -> float:
    return float(np.sqrt(sum((value.astype(np.float64) ** 2).sum() for value in model.values())))
